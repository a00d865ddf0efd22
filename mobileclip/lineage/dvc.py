"""Which DVC revision a folder is: the digest that `dvc.lock` or its pointer gives it, computed anew.

Read from the files that git keeps; DVC itself is not needed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mobileclip import storage
from mobileclip.lineage.trace import Trace, is_copy
from mobileclip.storage import dvc_remote

_LOCK, _POINTER = "dvc.lock", ".dvc"
_LABEL = "dvc"


def revisions(found: Trace) -> dict[str, dict[str, str]]:
    """By record digest, and by digest of a raw input: the MD5 that `dvc pull` would fetch the folder by.

    A folder that has changed since DVC saw it says so.
    """
    places = {node.digest: node.uri for node in found.nodes if not is_copy(node.uri)}
    places |= {digest: uri for _, _, digest, uri in found.outside if uri}
    known = {digest: revision(uri) for digest, uri in places.items()}
    return {digest: {_LABEL: text} for digest, text in known.items() if text}


def revision(uri: str) -> str:
    """DVC's digest of a local folder; empty where DVC does not know it."""
    if storage.is_s3(uri) or not Path(uri).is_dir():
        return ""
    folder = Path(uri).resolve()
    md5 = next((str(out["md5"]) for out in _outs(folder) if out.get("md5")), "")
    if not md5:
        return ""
    return md5 if dvc_remote.folder_digest(str(folder)) == md5 else f"{md5} (the folder has changed since)"


def _outs(folder: Path) -> Iterator[dict[str, Any]]:
    """Entries about this folder: of the pointer beside it, then of the nearest dvc.lock above."""
    for place in folder.parents:
        pointer, lock = place / f"{folder.name}{_POINTER}", place / _LOCK
        files = [pointer] if place == folder.parent and pointer.is_file() else []
        for file in [*files, *([lock] if lock.is_file() else [])]:
            for out in _listed(file):
                if (place / str(out.get("path", ""))).resolve() == folder:
                    yield out
        if (place / ".git").exists():
            return


def _listed(file: Path) -> list[dict[str, Any]]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        stages = raw.get("stages", {}).values()
        return [out for part in (raw, *stages) for out in part.get("outs", [])]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError):
        return []  # not DVC's file; a trace stands without it
