"""`mobileclip` and `python -m mobileclip`: the overview at once, everything else through `mobileclip.cli.app`."""

import os
import sys
from collections.abc import Sequence

from mobileclip import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the work failed, 2 bad input, 3 the gate refused a promotion.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not os.environ.get("_MOBILECLIP_COMPLETE"):
        if not arguments or arguments[0] in {"-h", "--help"}:
            from mobileclip.cli.registry import overview

            sys.stdout.write(overview())
            return 0
        if arguments[0] == "--version":
            sys.stdout.write(f"mobileclip {__version__}\n")
            return 0
    from mobileclip.cli.app import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
