"""The samples of a run, in a file instead of in memory: found in any order, written in the order of their uids."""

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobileclip.data.tars import Span

_SCHEMA = """
create table samples (uid text primary key, split text, name text, extension text, path blob, offset integer,
                      size integer, metadata text, look blob) without rowid;
create table places (path blob, offset integer, uid text, split text, primary key (path, offset)) without rowid;
create table rejected (name text, reason text);
"""


@dataclass(frozen=True)
class Listed:
    """A checked sample whose picture still lies where the user has it.

    Attributes:
        uid: First 24 hex digits of the picture's sha256.
        name: Where it comes from, for messages.
        extension: jpg, png or webp.
        span: Where its bytes lie.
        metadata: `captions`, `split`, `license` and every other field.
        look: 8 bytes of `mobileclip.data.lookalikes.look`; empty where they are not asked for.
    """

    uid: str
    name: str
    extension: str
    span: Span
    metadata: dict[str, Any]
    look: bytes = b""


class Catalog:
    """Samples and rejected samples of one run."""

    def __init__(self, folder: Path) -> None:
        """An empty catalog in a folder."""
        self._database = sqlite3.connect(folder / "catalog.sqlite")
        self._database.execute("pragma synchronous = off")  # a run that is killed starts anew
        self._database.execute("pragma journal_mode = off")
        self._database.executescript(_SCHEMA)

    def add(self, sample: Listed) -> str:
        """Add a sample; returns the name of the one that has its uid already, else an empty text."""
        span = sample.span
        try:
            self._database.execute(
                "insert into samples values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    sample.uid, sample.metadata["split"], json.dumps(sample.name), sample.extension,
                    os.fsencode(span.path), span.offset, span.size, json.dumps(sample.metadata), sample.look,
                ),
            )  # fmt: skip
        except sqlite3.IntegrityError:
            (name,) = self._database.execute("select name from samples where uid = ?", (sample.uid,)).fetchone()
            return str(json.loads(name))
        return ""

    def place(self, span: Span, uid: str, split: str) -> None:
        """Note which sample an image of the source became, and the split that the source named (may be empty)."""
        row = (os.fsencode(span.path), span.offset, uid, split)
        self._database.execute("insert or ignore into places values (?, ?, ?, ?)", row)

    def find(self, span: Span, split: str) -> str:
        """Uid of the sample that this very image became, with the same named split; empty if there is none."""
        query = "select uid from places where path = ? and offset = ? and split = ?"
        row = self._database.execute(query, (os.fsencode(span.path), span.offset, split)).fetchone()
        return str(row[0]) if row else ""

    def add_captions(self, uid: str, captions: list[str]) -> int:
        """Append captions that a sample does not have yet; returns how many."""
        (text,) = self._database.execute("select metadata from samples where uid = ?", (uid,)).fetchone()
        metadata = json.loads(text)
        new = [c for c in dict.fromkeys(captions) if c not in metadata["captions"]]
        metadata["captions"] += new
        self._database.execute("update samples set metadata = ? where uid = ?", (json.dumps(metadata), uid))
        return len(new)

    def reject(self, name: str, reason: str) -> None:
        """Note a sample that is not kept."""
        self._database.execute("insert into rejected values (?, ?)", (json.dumps(name), json.dumps(reason)))

    def rejected(self) -> Iterator[dict[str, str]]:
        """`sample` and `reason` of what was not kept, in the order of the source."""
        for name, reason in self._database.execute("select name, reason from rejected order by rowid"):
            yield {"sample": json.loads(name), "reason": json.loads(reason)}

    def rejected_any(self) -> bool:
        """Whether anything was rejected."""
        return self._database.execute("select 1 from rejected limit 1").fetchone() is not None

    def totals(self) -> tuple[int, int, int]:
        """Samples, their captions and their translations."""
        query = """select count(*), total(json_array_length(metadata, '$.captions')),
                   total((select count(*) from json_each(samples.metadata, '$.translations'))) from samples"""
        samples, captions, translations = self._database.execute(query).fetchone()
        return int(samples), int(captions), int(translations)

    def count(self, split: str) -> int:
        """Samples of a split."""
        row = self._database.execute("select count(*) from samples where split = ?", (split,)).fetchone()
        return int(row[0])

    def samples(self, split: str) -> Iterator[Listed]:
        """Samples of a split by uid: a hash of the picture, which mixes sources and knows no order of the input."""
        query = "select * from samples where split = ? order by uid"
        for uid, _, name, extension, path, offset, size, metadata, look in self._database.execute(query, (split,)):
            span = Span(os.fsdecode(path), offset, size)
            yield Listed(uid, json.loads(name), extension, span, json.loads(metadata), look)

    def looks(self) -> tuple[list[str], list[str], np.ndarray]:
        """Uids in order, their splits, and their looks uint64 [samples]."""
        rows = self._database.execute("select uid, split, look from samples order by uid").fetchall()
        looks = np.frombuffer(b"".join(row[2] for row in rows), dtype=np.uint64)
        return [row[0] for row in rows], [row[1] for row in rows], looks

    def close(self) -> None:
        """Close the file."""
        self._database.close()
