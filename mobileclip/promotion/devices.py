"""Latency that was measured on phones, kept with the registered version whose programs were measured."""

import re
from collections.abc import Sequence
from pathlib import Path

from mobileclip.formats import contract
from mobileclip.formats.measure import device_results
from mobileclip.formats.measure.device_results import DeviceResults
from mobileclip.promotion import registry, student_model

TAG = "latency.device/"


def fastest(results: DeviceResults) -> float:
    """Fastest image program plus fastest text program on a device [ms]; 0 where a tower was not measured."""
    times = [[row["ms"] for row in results.points(tower)] for tower in ("image", "text")]
    return sum(min(rows) for rows in times) if all(times) else 0.0


def tags(found: Sequence[DeviceResults]) -> dict[str, str]:
    """Tags of a version: milliseconds by device; devices that ran one tower alone are left out."""
    # MLflow's keys hold letters, digits and some signs only, and a device's name is free text.
    named = {re.sub(r"[^\w .-]", "-", results.device.name): fastest(results) for results in found}
    return {f"{TAG}{name}": f"{ms:.3f}" for name, ms in named.items() if ms}


def attach(model: str, results: str | Path, *, version: str = registry.CHAMPION) -> dict[str, str]:
    """Record device results with a registered version; the release reports of later runs draw them.

    Args:
        model: Name in the registry.
        results: A results file or a folder with `*.device.json`.
        version: Version number or alias.

    Returns:
        The tags that were set.

    Raises:
        DataError: No such version, no results, or results of another student.
        IntegrityError: A file is damaged, or its program is not the one that was registered.
    """
    where = registry.connect(model)
    number = where.version(version).number
    agreed = contract.read(student_model.download(model, number, "evidence/programs"))
    found = tags(device_results.read(results, contract=agreed))
    where.tag(number, found)
    return found
