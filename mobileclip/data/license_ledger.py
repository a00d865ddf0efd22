"""Who owns what was given: a ledger file of the input folder, and the licenses that samples name."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.manifest import Attribution, Source

FILE_NAME = "LICENSES.json"
# A sample belongs to the ledger entry that one of these fields names.
_FIELDS = ("source", "set", "artist")
_UNNAMED = "pictures and captions"


class Ledger:
    """Counts the samples of each source.

    `LICENSES.json` is a list of `{"set" or "name", "license", "attribution", "url", "role"}`. An entry counts the
    samples whose `source`, `set` or `artist` field names it; one with the role `captions` counts all. Samples that name
    no entry are counted by their license. Entries that no sample names (pretrained weights, say) are no sources.
    """

    def __init__(self, root: Path) -> None:
        """Read the ledger of an input folder, if it has one.

        Raises:
            DataError: It is of another form.
        """
        self._entries = _read(str(root), key="prepare.source")
        self._named: Counter[str] = Counter()
        self._unnamed: Counter[str] = Counter()

    def count(self, metadata: dict[str, Any]) -> None:
        """Count a sample."""
        for field in _FIELDS:
            if isinstance(metadata.get(field), str) and metadata[field] in self._entries:
                self._named[metadata[field]] += 1
                return
        self._unnamed[str(metadata["license"])] += 1

    def sources(self) -> list[Source]:
        """Sources with their licenses, attributions and numbers of samples."""
        total = self._named.total() + self._unnamed.total()
        found = []
        for name, entry in self._entries.items():
            samples = total if entry.get("role") == "captions" else self._named[name]
            if samples:
                found.append(Source(**_told(name, entry), samples=samples))
        found += [Source(name=_UNNAMED, license=k, samples=n) for k, n in sorted(self._unnamed.items())]
        return found


def of_tower(root: str, path: str, *, key: str) -> Attribution:
    """Whose pretrained weights a file or folder is, by the ledger beside it: the entry whose `file` names it.

    Args:
        root: Folder or URI with pretrained towers.
        path: Of the weights, inside it.
        key: What to call the input in errors.

    Returns:
        The entry; the path with the license `unknown` where there is none.

    Raises:
        DataError: The ledger is of another form.
    """
    for name, entry in _read(root, key=key).items():
        if str(entry.get("file", "")).rstrip("/") == path.rstrip("/"):
            return Attribution(kind="weights", **_told(name, entry))
    return Attribution(kind="weights", name=path)


def _read(root: str, *, key: str) -> dict[str, dict[str, str]]:
    uri = storage.join(root, FILE_NAME)
    if not storage.exists(uri):
        return {}
    try:
        entries = {str(row.get("set") or row["name"]): row for row in json.loads(storage.read_bytes(uri))}
        for name, entry in entries.items():
            Attribution(kind="data", **_told(name, entry))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(
            f"{key}: '{FILE_NAME}' is no list of objects with name and license, and texts for attribution and url "
            "(https://...) where it has them."
        ) from None
    return entries


def _told(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What a ledger entry says: `homepage` is another name of `url`."""
    url = entry.get("url") or entry.get("homepage") or ""
    return {"name": name, "license": entry["license"], "attribution": entry.get("attribution", ""), "url": url}
