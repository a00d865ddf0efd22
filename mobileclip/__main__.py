"""The command line: stages, `mobileclip run`, `mobileclip status` and a few tools. Loads no torch itself."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileclip import __version__, parallel
from mobileclip.chain import CHAIN
from mobileclip.cli.install_hint import install_line
from mobileclip.errors import MobileClipError

logger = logging.getLogger("mobileclip")

TOOLS = {
    "run": "run the whole chain, or a part of it; what is current is not run again",
    "status": "show which stages are current, changed or missing",
    "convert": "read or write the public DataCompDR/DFNDR layout",
    "verify": "re-hash and check every file of a dataset, and replay stored views",
    "plan": "estimate GPU-hours, storage, shards and groups of a reinforced dataset, and when it pays",
    "params": "complete and upgrade a params file: every key with its meaning, or only what differs",
    "models": "list the architectures with their sizes",
    "trace": "print the lineage of a file or stage folder back to its data",
    "history": "print the promotions of a registered model",
    "rollback": "make the previous champion the champion again",
    "explain": "print the gate's verdicts on a model version",
    "devices": "record latency measured on phones with a registered version, for the release reports",
    "bench-latency": "time students in every program format and precision, turn by turn in one run",
    "environment": "make the environment that an exporter with conflicting pins runs in",
    "bundle": "zip an export with everything an app needs, or check such a zip",
    "page": "serve the page that runs a bundle or export in a browser",
    "search": "find the images of a folder that fit a text, with a contact sheet",
    "classify": "give every image of a folder the most likely of several labels",
    "embed": "write the embeddings of a folder's images as Parquet or npz",
    "score": "score the programs of a bundle or export on a dataset, next to the student itself",
    "publish": "write folders into a DVC remote, without DVC or git",
    "suite": "score a model on the 40 tasks of the DataComp suite, or a registry of your own",
    "compare": "say whether one student is better than another, on the same samples or over training seeds",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the work failed, 2 bad input, 3 the gate refused a promotion.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    # Of the processes of `torchrun` all but the first one only warn.
    logging.basicConfig(level=logging.WARNING if parallel.rank() else logging.INFO, format="%(levelname)s %(message)s")
    for noisy in ("httpx", "alembic", "mlflow", "botocore", "urllib3", "root", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(_overview())
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"mobileclip {__version__}\n")
        return 0
    try:
        return _dispatch(arguments[0], arguments[1:])
    except MobileClipError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; a re-run goes on from what is committed\n")
        return 130
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError) and (line := install_line(error.name or "")):
            sys.stderr.write(f"error: '{error.name}' is not installed, {arguments[0]} needs it: {line}.\n")
            return 1
        sys.stderr.write(f"error: {type(error).__name__}: {error} (--debug shows the trace)\n")
        return 1


def _dispatch(command: str, arguments: list[str]) -> int:
    from mobileclip.cli import commands

    stages = {row.stage for row in CHAIN}
    if command in stages:
        return commands.stage(command, arguments)
    if command not in TOOLS:
        known = ", ".join([*(row.stage for row in CHAIN), *TOOLS])
        sys.stderr.write(f"error: command: got '{command}', want one of {known}.\n")
        return 2
    from mobileclip.cli import tools

    work: Any = tools.COMMANDS[command][1] if command in tools.COMMANDS else getattr(commands, command)
    return int(work(_parser(command).parse_args(arguments)))


def _parser(command: str) -> argparse.ArgumentParser:
    from mobileclip.cli import tools

    parser = argparse.ArgumentParser(prog=f"mobileclip {command}", description=TOOLS[command].capitalize() + ".")
    if command in tools.COMMANDS:
        tools.COMMANDS[command][0](parser)
    if command in {"run", "status"}:
        _add_chain_options(parser, command)
    if command == "verify":
        parser.add_argument("data", help="folder or URI with a manifest")
        parser.add_argument("--teachers", default="", help="train_teacher's output, to replay and re-embed views")
        parser.add_argument("--samples", type=int, default=16, help="samples whose views are replayed and re-embedded")
    if command == "trace":
        parser.add_argument("path", help="a file, a stage folder, or models:/NAME@champion")
        parser.add_argument(
            "--root", action="append", default=[], help="where else earlier stages or raw inputs lie; may be repeated"
        )
    if command in {"history", "rollback", "explain"}:
        parser.add_argument("model", help="name in the model registry")
    if command == "rollback":
        parser.add_argument("--why", required=True, help="reason, kept in the history")
    if command == "explain":
        parser.add_argument("version", nargs="?", default="champion", help="model version or alias")
    if command == "params":
        parser.add_argument(
            "params", nargs="?", type=Path, help="params file to complete with comments; default: built in"
        )
        _add_recipe(parser)
        parser.add_argument("--short", action="store_true", help="only the keys that differ from the defaults")
        parser.add_argument("--out", default="", help="file to write; default: print it")
    return parser


def _add_chain_options(parser: argparse.ArgumentParser, command: str) -> None:
    default = Path("params.yaml") if command == "run" else None
    parser.add_argument("--params", type=Path, default=default, help="one section per stage")
    _add_recipe(parser)
    parser.add_argument("--root", default="runs/local", help="folder or s3:// prefix; stage X writes ROOT/X")
    parser.add_argument("--source", default="data/raw", help="folder with pictures and captions")
    parser.add_argument("--towers", default="", help="folder with pretrained towers, if a teacher uses some")
    if command == "status":
        parser.add_argument(
            "place", nargs="?", default="", metavar="ROOT", help="what a run left; needs no other option"
        )
        parser.add_argument("--json", action="store_true", help="print JSON")
    if command == "run":
        names = [row.stage for row in CHAIN]
        parser.add_argument("--from", dest="first", choices=names, default=names[0], help="first stage")
        parser.add_argument("--to", dest="last", choices=names, default=names[-1], help="last stage")
        parser.add_argument("--force", action="store_true", help="run stages that are current, too")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    what = "keys that differ from the params file (examples/recipes); may be repeated, the last one wins"
    parser.add_argument("--recipe", type=Path, action="append", default=[], metavar="FILE", help=what)


def _overview() -> str:
    lines = ["usage: mobileclip COMMAND [options]   (mobileclip COMMAND --help shows every option)", "", "stages"]
    lines += [f"  {row.stage:<20}{row.title}" for row in CHAIN]
    lines += ["", "tools"] + [f"  {name:<20}{text}" for name, text in TOOLS.items()]
    lines += ["", "  --version, --debug (show traces)", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
