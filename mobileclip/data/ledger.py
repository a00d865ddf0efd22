"""Who owns the pictures and captions: a ledger file of the input folder, and the licenses that samples name."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mobileclip.errors import DataError
from mobileclip.manifest import Source

FILE_NAME = "LICENSES.json"
# A sample belongs to the ledger entry that one of these fields names.
_FIELDS = ("source", "set", "artist")
_UNNAMED = "pictures and captions"


class Ledger:
    """Counts the samples of each source.

    `LICENSES.json` is a list of `{"set" or "name", "license", "attribution", "role"}`. An entry counts the samples
    whose `source`, `set` or `artist` field names it; one with the role `captions` counts all. Samples that name no
    entry are counted by their license. Entries that no sample names (pretrained weights, say) are no sources.
    """

    def __init__(self, root: Path) -> None:
        """Read the ledger of an input folder, if it has one.

        Raises:
            DataError: It is of another form.
        """
        self._entries = _read(root / FILE_NAME)
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
                attribution = entry.get("attribution", "")
                found.append(Source(name=name, license=entry["license"], attribution=attribution, samples=samples))
        found += [Source(name=_UNNAMED, license=k, samples=n) for k, n in sorted(self._unnamed.items())]
        return found


def _read(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_bytes())
        entries = {str(row.get("set") or row["name"]): row for row in rows}
        for row in rows:
            if not isinstance(row["license"], str) or not isinstance(row.get("attribution", ""), str):
                raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"prepare.source: '{path.name}' is no list of objects with name and license.") from None
    return entries
