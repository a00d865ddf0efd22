"""`python -m benchmarks`: the benchmarks that need no finished run, one after the other."""

import runpy
import sys

SELF_CONTAINED = (
    "benchmarks.bench_caption",
    "benchmarks.bench_reinforce",
    "benchmarks.bench_loader",
    "benchmarks.bench_storage",
)

for name in SELF_CONTAINED:
    print(f"\n## {name}\n", flush=True)
    sys.argv = [name]
    runpy.run_module(name, run_name="__main__")
