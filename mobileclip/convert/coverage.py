"""What a conversion joined and what it did not, with names and reasons."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mobileclip import storage
from mobileclip.convert.pictures import PictureSet
from mobileclip.convert.unit import Unit
from mobileclip.errors import DataError

_NAMED = 20


def report_coverage(out: str, units: Sequence[Unit], pictures: PictureSet, *, min_coverage: float) -> dict[str, Any]:
    """Write `coverage.json` (counts, the first names) and `left_out.jsonl` (every name with its reason).

    Returns:
        The report: `rows` of the tars, how many were `joined`, `left_out` by cause, `pictures_without_rows`.

    Raises:
        DataError: A uid lies in two tars, nothing was joined, or less than `min_coverage`.
    """
    for unit in units:
        pictures.mark(unit.tar, unit.uids)
    listed = [{"tar": unit.tar, **item} for unit in units for item in unit.left_out]
    unused = list(pictures.unmarked())
    rows = sum(unit.rows for unit in units)
    joined = sum(shard.samples for unit in units for shard in unit.shards)
    same: Counter[str] = Counter()
    for unit in units:
        same.update(unit.bytes)
    report = {
        "tars": len(units), "rows": rows, "joined": joined, "coverage": joined / rows if rows else 0.0,
        "left_out": _by_cause(listed), "picture_bytes": dict(sorted(same.items())), "pictures": pictures.count(),
        "pictures_without_rows": {"count": len(unused), "first": unused[:_NAMED]},
    }  # fmt: skip
    storage.write_bytes(
        storage.join(out, "coverage.json"), (json.dumps(report, indent=1, sort_keys=True) + "\n").encode()
    )
    listed += [{"uid": uid, "cause": "picture_without_row"} for uid in unused]
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in listed)
    storage.write_bytes(storage.join(out, "left_out.jsonl"), lines.encode())
    if not joined or report["coverage"] < min_coverage:  # type: ignore[operator]
        raise DataError(_too_few(joined, rows, listed, min_coverage))
    return report


def _by_cause(listed: Sequence[dict[str, str]]) -> dict[str, Any]:
    causes: dict[str, list[dict[str, str]]] = {}
    for item in listed:
        causes.setdefault(item["cause"], []).append(item)
    return {cause: {"count": len(items), "first": items[:_NAMED]} for cause, items in sorted(causes.items())}


def _too_few(joined: int, rows: int, listed: Sequence[dict[str, str]], min_coverage: float) -> str:
    wanted = f"at least {min_coverage:.2%}" if min_coverage else "at least one"
    first = next((item for item in listed if "reason" in item), {"uid": "none", "reason": "the tars are empty"})
    reason = first["reason"].rstrip(".")
    return (
        f"convert.min_coverage: {joined} of {rows} rows could be joined, want {wanted}; the first left out is "
        f"'{first['uid']}': {reason}."
    )
