"""`python -m benchmarks`: the benchmarks that need no finished run, one after the other."""

import runpy
import sys

SELF_CONTAINED = ("benchmarks.bench_caption",)

for name in SELF_CONTAINED:
    sys.argv = [name]
    runpy.run_module(name, run_name="__main__")
