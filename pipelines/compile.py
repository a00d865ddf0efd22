"""`python -m pipelines.compile`: write the pipeline packages; the same code and params give the same bytes."""

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from kfp import compiler

from mobileclip.errors import MobileClipError
from pipelines import defaults
from pipelines.catalog import PIPELINES, build
from pipelines.defaults import Sections
from pipelines.resources import PROFILES

logger = logging.getLogger(__name__)


def compile_package(name: str, sections: Sections, path: Path, *, profile: str) -> Path:
    """Write one package (.yaml: the pipeline, and its Kubernetes settings as a second document).

    Args:
        name: Pipeline.
        sections: Defaults of its parameters.
        path: Where to.
        profile: Column of the resource table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build(name, sections, profile), str(path))
    # The compiler's comment at the top prints defaults in an order that changes from process to process.
    lines = itertools.dropwhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Compile every pipeline."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description="Write the pipeline packages.")
    parser.add_argument("--out", type=Path, default=Path("build/pipelines"), help="folder for NAME.yaml")
    parser.add_argument("--params", type=Path, default=defaults.PARAMS, help="defaults of the pipelines' parameters")
    parser.add_argument("--profile", choices=PROFILES, default="gpu", help="column of the resource table")
    arguments = parser.parse_args(argv)
    try:
        sections = defaults.read(arguments.params)
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for name in PIPELINES:
        print(compile_package(name, sections, arguments.out / f"{name}.yaml", profile=arguments.profile))
    return 0


if __name__ == "__main__":
    sys.exit(main())
