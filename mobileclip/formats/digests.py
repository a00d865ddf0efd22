"""Sizes and digests of programs, which are files or folders."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, or of a folder: all its files by relative path (Core ML packages are folders)."""
    if path.is_file():
        with path.open("rb") as handle:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
    return combine({p.relative_to(path).as_posix(): digest(p) for p in sorted(path.rglob("*")) if p.is_file()})


def combine(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Size and sha256 of a folder from those of its files, by relative path."""
    whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"bytes": sum(part["bytes"] for part in parts.values()), "sha256": whole}
