"""Opening a large data set: time to the first batch, memory and open files of a training process.

    python -m benchmarks.bench_scale [--samples 128000 1280000 12800000] [--shard 10000]

The data set is a description: every shard of the manifest is the same real one, so that 12.8 million samples take
little disk. A process of its own opens each size (two teachers, stored views, one captioner) and makes one batch. What
a description cannot show: a real shard is hashed at its first use, once per machine. The last line opens 20 shards as
data sets without indexes are opened, by their tars' own headers.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import made_data
from mobileclip import manifest
from mobileclip.data.loader import PairDataset, Recipe, batches
from mobileclip.data.order import WHOLE, Steps, Streams, place_batch
from mobileclip.data.preprocess import Preprocess

BATCH, SMALL = 256, 32


def main() -> None:
    """Measure every size in a process of its own and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[128_000, 1_280_000, 12_800_000])
    parser.add_argument("--shard", type=int, default=10_000, help="samples of a shard")
    parser.add_argument("--open", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(measure(options.open)))
        return
    with tempfile.TemporaryDirectory() as folder:
        items = made_data.samples(options.shard, width=SMALL, height=SMALL)
        real = made_data.reinforced(folder, items, views=1, captions=1, size=(SMALL, SMALL))
        rows = [_opened(folder, real, max(1, samples // options.shard)) for samples in options.samples]
        old = _opened(folder, real, 20, indexed=False)
    print("| samples | shards | manifest, s | to the first batch, s | memory, MB | files held open |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(_line(row))
    print(_line(old) + " without indexes")
    for key in ("seconds", "memory_mb"):
        slopes = [_slope(a, b, key) for a, b in itertools.pairwise(rows)]
        print(f"exponent of {key} over samples: " + ", ".join(f"{slope:.2f}" for slope in slopes))
    print("\n" + shuffle_table(shards=max(WHOLE + 1, options.samples[-1] // options.shard), size=options.shard))


def measure(folder: str) -> dict[str, float]:
    """Open the data set and make one batch in this process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    content = manifest.read(folder)
    read, before = time.perf_counter(), _pss()
    preprocess = Preprocess(SMALL, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    recipe = Recipe(preprocess, _no_tokens, synthetic=("coca",), teachers=made_data.TEACHERS)
    dataset = PairDataset(folder, content, recipe)
    next(batches(dataset, batch_size=BATCH, first_step=0, last_step=1, seed=0, workers=0))
    done = time.perf_counter()
    files = len(list(Path("/proc/self/fd").iterdir()))
    return {
        "samples": len(dataset), "shards": len(content.shards), "manifest": read - start, "seconds": done - read,
        "memory_mb": _pss() - before, "files": files,
    }  # fmt: skip


def shuffle_table(*, shards: int, size: int, steps: int = 200) -> str:
    """How streams mix an epoch against a permutation of the whole: distances and shards within a batch.

    Args:
        shards: Of the data set.
        size: Samples of a shard.
        steps: Batches that are looked at.
    """
    starts = np.arange(shards + 1, dtype=np.int64) * size
    streams = Streams(starts, 0)
    orders = {
        "streams": [streams.place_batch(BATCH, step) for step in range(steps)],
        "whole": [place_batch(int(starts[-1]), BATCH, step, 0) for step in range(steps)],
    }
    assert list(next(iter(Steps(starts, BATCH, 0, 1, 0, slice(None))))) == orders["streams"][0]
    lines = ["| order | shards in a batch | entropy of them, bits | mean distance in a batch, share of the data |"]
    lines.append("|---|---|---|---|")
    for name, found in orders.items():
        positions = np.array([[position for _, position in batch] for batch in found])
        counts = [np.unique(row // size, return_counts=True)[1] / BATCH for row in positions]
        entropy = np.mean([-(share * np.log2(share)).sum() for share in counts])
        shuffled = np.random.default_rng(0).permuted(positions, axis=1)
        distance = np.abs(np.diff(shuffled, axis=1)).mean() / starts[-1]
        lines.append(f"| {name} | {np.mean([len(share) for share in counts]):.0f} | {entropy:.2f} | {distance:.3f} |")
    return "\n".join(lines)


def _no_tokens(texts: Sequence[str]) -> torch.Tensor:
    """Token ids that cost nothing: reading is measured, not tokenizing."""
    return torch.zeros(len(texts), 77, dtype=torch.long)


def _opened(folder: str, real: manifest.Manifest, shards: int, *, indexed: bool = True) -> dict[str, float]:
    (shard,) = real.shards
    shard = shard if indexed else shard.model_copy(update={"index_sha256": ""})
    names = [f"train-{number:05d}" for number in range(shards)]
    columns = [
        column.model_copy(update={"parts": dict.fromkeys(names, next(iter(column.parts.values())))})
        for column in real.columns
    ]
    many = [shard.model_copy(update={"name": name}) for name in names]
    manifest.write(folder, manifest.Manifest(shards=many, columns=columns))
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--open", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _slope(small: dict[str, float], large: dict[str, float], key: str) -> float:
    """Exponent with which a figure grows from one size to the next."""
    return math.log(large[key] / small[key]) / math.log(large["samples"] / small["samples"])


def _line(row: dict[str, float]) -> str:
    return (
        f"| {row['samples']:,} | {row['shards']:,} | {row['manifest']:.2f} | {row['seconds']:.2f} | "
        f"{row['memory_mb']:.0f} | {row['files']:.0f} |"
    )


def _pss() -> float:
    """Proportional memory of this process in MB: pages that processes share count once among them."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1e3


if __name__ == "__main__":
    main()
