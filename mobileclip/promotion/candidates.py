"""Registered students as points of accuracy over latency: kept as tags of their versions, read back by later runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobileclip.promotion import devices
from mobileclip.promotion.gates import Evidence
from mobileclip.promotion.registry import Version

_MOST = 40


@dataclass(frozen=True)
class Candidate:
    """A registered student on the chart.

    Attributes:
        version: Its number.
        label: What stands beside its dot.
        score: Headline metric, 0 to 1.
        low: Lower end of its interval.
        high: Upper end.
        latency_ms: Fastest image and text program together: here with one thread, or on the device.
        kind: `student` (this one), `champion` or `other`.
        device: What it was measured on; empty = here.
    """

    version: int
    label: str
    score: float
    low: float
    high: float
    latency_ms: float
    kind: str
    device: str = ""


def fastest_ms(timings: Mapping[str, Any]) -> float:
    """Fastest image program plus fastest text program at one thread [ms]; 0 where nothing was measured."""
    total = 0.0
    for tower in ("image", "text"):
        rows = timings.get(tower, {}).get("threads_1", {})
        times = [row["p50_ms"] for name, row in rows.items() if name != "eager"]
        if not times:
            return 0.0
        total += min(times)
    return total


def score_tags(evidence: Evidence, timings: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a version by which later runs draw it: headline score with its interval, and latency."""
    metric = str(evidence.results.get("headline", ""))
    names = {"score": "", "score.low": "/low", "score.high": "/high"}
    found = {tag: evidence.metrics.get(f"student/{metric}{suffix}") for tag, suffix in names.items()}
    if None in found.values():
        return {}
    return {"score.metric": metric, **{k: str(v) for k, v in found.items()}, "latency.ms": f"{fastest_ms(timings):.3f}"}


def latest(versions: Sequence[Version], *, metric: str, own: int, champion: int) -> list[Candidate]:
    """The latest registered versions that have the same headline metric and a latency, once more for each device.

    Args:
        versions: All of the registered model, by number.
        metric: The headline metric of this run.
        own: This student's version.
        champion: The champion's; 0 = there is none.
    """
    kinds = {champion: "champion", own: "student"}
    found = []
    for version in versions[-_MOST:]:
        tags = version.tags
        if tags.get("score.metric") != metric:
            continue
        score, low, high = (float(tags[name]) for name in ("score", "score.low", "score.high"))
        times = {"": tags.get("latency.ms", "0")}
        times |= {k.removeprefix(devices.TAG): v for k, v in sorted(tags.items()) if k.startswith(devices.TAG)}
        kind, name = kinds.get(version.number, "other"), f"v{version.number}"
        found += [
            Candidate(
                version.number, f"{name}, {device}" if device else name, score, low, high, float(ms), kind, device
            )
            for device, ms in times.items()
            if float(ms) > 0
        ]  # fmt: skip
    return found
