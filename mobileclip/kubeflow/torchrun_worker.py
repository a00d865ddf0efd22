"""`torchrun -m mobileclip.kubeflow.torchrun_worker WORK`: one process of a stage that runs on several.

WORK is JSON that `mobileclip.kubeflow.launch` writes. Every process goes through the same door; the stage itself
knows its rank, and the first one writes what it leaves.
"""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import run as kubeflow_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage.

    Returns:
        0 done, 1 the work failed, 2 bad input.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    try:
        work = parse(sys.argv[1:] if argv is None else argv)
        where = kubeflow_run.Run(work["root"], work["code"], work["generation"])
        kubeflow_run.take_part(work["stage"], work["config"], where, **work["inputs"])
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Read WORK.

    Raises:
        ConfigError: It is not what a launcher writes.
    """
    wanted = {"stage", "config", "root", "code", "generation", "inputs"}
    try:
        (text,) = argv
        work = json.loads(text)
    except ValueError:
        raise ConfigError("work: want one argument, a JSON object.") from None
    if not isinstance(work, dict) or work.keys() != wanted:
        raise ConfigError(f"work: want a JSON object with {', '.join(sorted(wanted))}.")
    return work


if __name__ == "__main__":
    sys.exit(main())
