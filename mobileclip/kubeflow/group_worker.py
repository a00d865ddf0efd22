"""`python -m mobileclip.kubeflow.group_worker COUNT WORK`: one index of an Indexed Job, which is one group of a stage.

WORK is JSON that `mobileclip.kubeflow.launch` writes; Kubernetes tells the index as `JOB_COMPLETION_INDEX`.
"""

import logging
import os
import sys
from collections.abc import Sequence

from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import run as kubeflow_run
from mobileclip.kubeflow.torchrun_worker import parse

INDEX = "JOB_COMPLETION_INDEX"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one group.

    Returns:
        0 done, 1 the work failed, 2 bad input: the job ends, as any other try would fail in the same way.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    try:
        count, *rest = sys.argv[1:] if argv is None else argv
        work = parse(rest)
        where = kubeflow_run.Run(work["root"], work["code"], work["generation"])
        group = f"{os.environ.get(INDEX, '')}/{count}"
        logging.getLogger(__name__).info("%s: group %s", work["stage"], group)
        kubeflow_run.run_group(work["stage"], work["config"], where, group=group, **work["inputs"])
    except ValueError:
        sys.stderr.write(f"error: {ConfigError('work: want COUNT and a JSON object.')}\n")
        return ConfigError.exit_code
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
