"""What a stage's folder holds, in a line each for people: shards, columns, models, programs, from its own lists."""

import json
import re
from collections import Counter
from typing import Any

from mobileclip import manifest, storage

_CARD, _CONTRACT = "model.json", "contract.json"
_DIGITS = 12


def describe(uri: str, record: dict[str, Any]) -> list[str]:
    """Lines about a folder; of what is not at hand there is none.

    Args:
        uri: The folder.
        record: Its record.
    """
    names = [name for name in sorted(record["files"]) if storage.exists(storage.join(uri, name))]
    lines: list[str] = []
    for name in names:
        if name == manifest.FILE_NAME:
            lines += _data(manifest.read(uri))
        elif name.rpartition("/")[2] == _CARD:
            lines.append(_model(name.rpartition("/")[0], json.loads(storage.read_bytes(storage.join(uri, name)))))
        elif name == _CONTRACT:
            contract = json.loads(storage.read_bytes(storage.join(uri, name)))
            lines += [f"program {p['path']} {p['sha256'][:_DIGITS]}" for p in contract["programs"]]
    return lines


def _data(listed: manifest.Manifest) -> list[str]:
    """Its shards and columns; those of earlier stages, which lie beside it, are told there."""
    lines = []
    shards = [shard for shard in listed.shards if _own(shard.path)]
    if shards:
        samples = Counter[str]()
        for shard in shards:
            samples[shard.split] += shard.samples
        splits = ", ".join(f"{count:,} {split}" for split, count in samples.items())
        lines.append(f"{len(shards)} data shards, {splits} samples")
    columns = [column for column in listed.columns if any(_own(part.path) for part in column.parts.values())]
    return lines + [f"column {column.name} ({column.kind}){_maker(column.spec)}" for column in columns]


def _own(path: str) -> bool:
    return not path.startswith("..") and not storage.is_s3(path)


def _maker(spec: dict[str, Any]) -> str:
    """The model that computed a column, as far as its spec names one."""
    model = spec.get("model")
    name, sha256 = (model.get("name", ""), model.get("sha256", "")) if isinstance(model, dict) else (model or "", "")
    words = [str(name)[:_DIGITS] if re.fullmatch(r"[0-9a-f]{64}", str(name)) else str(name).removeprefix("trained:")]
    words.append(str(sha256 or spec.get("sha256", ""))[:_DIGITS])
    known = " ".join(word for word in words if word)
    return f" by {known}" if known else ""


def _model(folder: str, card: dict[str, Any]) -> str:
    made = [f"weights {folder} {card.get('model', '')} {str(card.get('sha256', ''))[:_DIGITS]}".replace("  ", " ")]
    teachers = card.get("teachers") or {}
    made += [f"teacher {name} {str(digest)[:_DIGITS]}" for name, digest in teachers.items()]
    made += [f"captions {name}" for name in card.get("synthetic") or []]
    return ", ".join(made)
