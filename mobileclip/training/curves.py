"""What a training leaves beside its weights: learning curves for the tracker and as files, and times."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mobileclip import storage
from mobileclip.tracking.protocol import Tracker
from mobileclip.training.loop import Report, Result


def reporter(tracker: Tracker) -> Report:
    """A function that sends points of learning curves to the tracker."""

    def report(point: dict[str, Any]) -> None:
        numbers = {k: v for k, v in point.items() if isinstance(v, float)}
        tracker.log_metrics({f"{point['model']}/{k}": v for k, v in numbers.items()}, step=int(point["step"]))

    return report


def log_history(tracker: Tracker, result: Result) -> None:
    """Send a whole learning curve to the tracker, with the speed of this run where it is known."""
    speeds = {speed["step"]: speed for speed in result.speeds}
    for point in result.history:
        reporter(tracker)(point | speeds.get(point["step"], {}))


def write_history(folder: str, histories: Sequence[Result]) -> None:
    """Write `history.jsonl`: the learning curves of a stage, one point a line."""
    lines = [json.dumps(point, sort_keys=True) + "\n" for result in histories for point in result.history]
    storage.write_bytes(storage.join(folder, "history.jsonl"), "".join(lines).encode())


def write_timings(folder: str, results: Mapping[str, Result]) -> None:
    """Write `timings.json`: seconds, share of waiting for data, samples per second, and both by point of the curve.

    Of a resumed run since it was resumed.
    """
    rows = {
        name: {
            "seconds": round(r.seconds, 3),
            "wait_share": round(r.wait_seconds / max(r.seconds, 1e-9), 4),
            "samples_per_second": round(r.samples / max(r.seconds, 1e-9), 2),
            "points": [{k: round(v, 4) for k, v in speed.items()} for speed in r.speeds],
        }
        for name, r in results.items()
    }
    storage.write_bytes(storage.join(folder, "timings.json"), (json.dumps(rows, indent=2) + "\n").encode())
