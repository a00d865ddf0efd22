"""How far a run is and how fast it went: bars on a terminal, log lines elsewhere, `timings.json` afterwards."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from mobileclip import storage
from mobileclip.manifest import Shard

logger = logging.getLogger(__name__)


_LOG_SECONDS = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {remaining} left"


class _Log:
    """What a bar writes its line to where there is no terminal."""

    def write(self, text: str) -> None:
        if text.strip():
            logger.info("%s", text.strip())

    def flush(self) -> None:
        """Every line is whole."""


def progress_bar(items: Iterable[Any] | None = None, *, quiet: bool = False, **options: Any) -> Any:
    """A `tqdm` bar on a terminal; elsewhere a log line a minute, which a pod's log keeps.

    Args:
        items: What it goes through; nothing for a bar that is updated by hand.
        quiet: Show neither.
        options: `desc`, `unit`, `total`, `position`, `leave` of tqdm.
    """
    if quiet or sys.stderr.isatty():
        return tqdm(items, **options, **({"disable": True} if quiet else {}))  # else TQDM_DISABLE decides
    return tqdm(
        items, file=_Log(), mininterval=_LOG_SECONDS, delay=_LOG_SECONDS, miniters=1, bar_format=_LINE, **options
    )  # fmt: skip


def format_seconds(seconds: float) -> str:
    """Seconds as `01:23:45` or `23:45`."""
    return str(tqdm.format_interval(seconds))


@dataclass(frozen=True)
class Work:
    """What one run of a stage did.

    Attributes:
        seconds: From the first shard to the last.
        shards: Seconds by name of each shard that had something missing; with several processes they overlap.
        samples: Samples of those shards.
    """

    seconds: float
    shards: dict[str, float]
    samples: int

    @property
    def rate(self) -> float:
        """Samples per second; 0 where there was nothing to do."""
        return self.samples / self.seconds if self.samples and self.seconds else 0.0


def watched(shards: Sequence[Shard], label: str, *, position: int = 0) -> Iterator[Shard]:
    """Go through shards, saying after each how many samples are done, samples per second and the time left.

    Args:
        shards: Those that have something missing.
        label: What is being made.
        position: Line of the bar where several processes have one.
    """
    total, done, start = sum(shard.samples for shard in shards), 0, time.perf_counter()
    shown = sys.stderr.isatty()
    with progress_bar(total=total, desc=label, unit="sample", position=position, quiet=not shown) as progress:
        for shard in shards:
            progress.set_postfix_str(shard.name)
            yield shard
            done += shard.samples
            progress.update(shard.samples)
            if shown:
                continue
            rate = done / max(time.perf_counter() - start, 1e-9)
            left = format_seconds((total - done) / max(rate, 1e-9))
            logger.info("%s: %s, %d of %d samples, %.1f a second, %s left", label, shard.name, done, total, rate, left)


def write_timings(out: str, work: Work, *, group: int = 0, num_groups: int = 1, **more: Any) -> None:
    """Write `timings.json` (`timings-00003.json` for one group of several), which no lineage record looks at.

    A run that found everything done leaves the times of the run that did it.

    Args:
        out: The stage's output folder or URI.
        work: What was done.
        group: This process's unit of work.
        num_groups: Number of units.
        more: Further entries.
    """
    if not work.shards:
        return
    name = f"timings-{group:05d}.json" if num_groups > 1 else "timings.json"
    times = {
        "seconds": round(work.seconds, 3),
        "samples": work.samples,
        "samples_per_second": round(work.rate, 3),
        "shards": {shard: round(seconds, 3) for shard, seconds in sorted(work.shards.items())},
        **more,
    }
    storage.write_bytes(storage.join(out, name), (json.dumps(times, indent=1, sort_keys=True) + "\n").encode())
