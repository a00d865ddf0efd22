"""A set of pictures looked up by uid: webdataset tars or a prepared dataset, indexed in a file instead of in memory."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileclip import manifest, storage
from mobileclip.data import texts
from mobileclip.data.shards import IMAGE_EXTENSIONS
from mobileclip.data.tars import Entry, Span, find_tars, scan
from mobileclip.errors import DataError

_SCHEMA = """
create table pictures (id integer primary key, name text, path text, offset integer, size integer, extension text,
                       fields text);
create table keys (uid text primary key, picture integer, twice integer default 0);
create table used (uid text primary key, tar text);
"""


@dataclass(frozen=True)
class Picture:
    """One picture of the set.

    Attributes:
        extension: jpg, png or webp.
        span: Where its bytes lie.
        fields: `captions` (list of str) and whatever its json says.
    """

    extension: str
    span: Span
    fields: dict[str, Any]


class PictureSet:
    """Pictures by uid: the `uid` of a sample's json, or its key in the tar.

    A key that several samples share (img2dataset counts from zero in every shard) names none of them.
    """

    def __init__(self, path: Path) -> None:
        """Open the index at `path`."""
        self._path = path
        self._connection: sqlite3.Connection | None = None

    @classmethod
    def build(cls, uri: str, scratch: Path) -> "PictureSet":
        """Index a folder or prefix of tars, or a dataset with a manifest; nothing for an empty `uri`.

        Raises:
            DataError: There are no tars, one is damaged, or none holds a picture.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        path = scratch / "pictures.sqlite"
        path.unlink(missing_ok=True)
        found = cls(path)
        database = found._database
        database.executescript(_SCHEMA)
        for name, local in _tars(uri) if uri else ():
            for entry in scan(local, name=name, where="convert.images", scratch=scratch):
                _insert(database, entry)
        found.close()
        if uri and not found.count():
            raise DataError(f"convert.images: the tars of '{uri}' hold no pictures.")
        found.close()
        return found

    def count(self) -> int:
        """Number of pictures."""
        return int(self._database.execute("select count(*) from pictures").fetchone()[0])

    def digest(self) -> str:
        """Digest of what the index says, but for where the files lie."""
        digest = hashlib.sha256()
        for row in self._database.execute("select name, offset, size, extension, fields from pictures order by id"):
            digest.update(repr(row).encode(errors="surrogatepass"))
        self.close()
        return digest.hexdigest()

    def find(self, uid: str) -> Picture | str:
        """The picture, or why there is none."""
        row = self._database.execute(
            "select twice, extension, path, offset, size, fields from keys join pictures on id = picture where uid = ?",
            (uid,),
        ).fetchone()
        if row is None:
            return "no picture of this uid"
        if row[0]:
            return "several pictures have this uid"
        return Picture(row[1], Span(*row[2:5]), json.loads(row[5]))

    def mark(self, tar: str, uids: Iterable[str]) -> None:
        """Note the uids that a reinforced tar has rows for.

        Raises:
            DataError: Another tar has one of them, too.
        """
        for uid in uids:
            before = self._database.execute("select tar from used where uid = ?", (uid,)).fetchone()
            if before is not None:
                raise DataError(f"convert: uid '{uid}' occurs in '{before[0]}' and in '{tar}', want it once.")
            self._database.execute("insert into used values (?, ?)", (uid, tar))

    def unmarked(self) -> Iterator[str]:
        """Names of the pictures without reinforcement rows, sorted."""
        query = """select name from pictures where id not in
                   (select picture from keys join used on keys.uid = used.uid) order by name"""
        for (name,) in self._database.execute(query):
            yield str(name)

    def close(self) -> None:
        """Close the file; the next call opens it again (a forked process needs a connection of its own)."""
        if self._connection is not None:
            self._connection.commit()
            self._connection.close()
            self._connection = None

    @property
    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path)
            self._connection.execute("pragma synchronous = off")  # an index that is lost is built again
        return self._connection


def _tars(uri: str) -> Iterator[tuple[str, Path]]:
    if storage.exists(storage.join(uri, manifest.FILE_NAME)):
        for shard in manifest.read(uri).shards:
            yield shard.name, storage.local_copy(storage.join(uri, shard.path), sha256=shard.sha256)
        return
    found = find_tars(uri)
    if not found:
        raise DataError(f"convert.images: '{uri}' holds no tars.")
    for name, place in found:
        yield name, storage.local_copy(place)


def _insert(database: sqlite3.Connection, entry: Entry) -> None:
    extension = next((e for e in entry.members if e in IMAGE_EXTENSIONS), "")
    if not extension or entry.fault:
        return
    fields = read_fields(entry)
    key = entry.key.rpartition("/")[2]
    span = entry.members[extension]
    uid = fields.get("uid")
    name = uid if isinstance(uid, str) and uid else key
    cursor = database.execute(
        "insert into pictures (name, path, offset, size, extension, fields) values (?, ?, ?, ?, ?, ?)",
        (name, span.path, span.offset, span.size, extension, json.dumps(fields)),
    )
    for alias in {name, key}:
        database.execute(
            "insert into keys (uid, picture) values (?, ?) on conflict (uid) do update set twice = 1",
            (alias, cursor.lastrowid),
        )


def read_fields(entry: Entry) -> dict[str, Any]:
    """A sample's json with `captions`: those of the json, else the text member; damaged json counts as none."""
    fields: Any = {}
    if "json" in entry.members:
        try:
            fields = json.loads(entry.members["json"].read())
        except (ValueError, RecursionError):
            fields = {}
    fields = fields if isinstance(fields, dict) else {}
    captions = fields.pop("captions", None) or fields.pop("caption", None) or []
    captions = [captions] if isinstance(captions, str) else captions
    captions = [c for c in captions if isinstance(c, str) and c.strip()] if isinstance(captions, list) else []
    if not captions and "txt" in entry.members:
        captions, _ = texts.captions(texts.decode(entry.members["txt"].read()))
    return {**fields, "captions": captions}
