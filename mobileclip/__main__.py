"""The command line: stages, `mobileclip run`, `mobileclip status` and a few tools. Loads no torch itself."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileclip import __version__
from mobileclip.chain import CHAIN
from mobileclip.errors import MobileClipError

logger = logging.getLogger("mobileclip")

TOOLS = {
    "run": "run the whole chain, or a part of it; what is current is not run again",
    "status": "show which stages are current, changed or missing",
    "convert": "read or write the public DataCompDR/DFNDR layout",
    "verify": "re-hash and check every file of a dataset, and replay stored views",
    "plan": "estimate GPU-hours, storage, shards and groups of a reinforced dataset, and when it pays",
    "params": "print a params file with every key and its meaning",
    "models": "list the architectures with their sizes",
    "trace": "print the lineage of a file or stage folder back to its data",
    "history": "print the promotions of a registered model",
    "rollback": "make the previous champion the champion again",
    "explain": "print the gate's verdicts on a model version",
    "bench-latency": "time students in every program format and precision, turn by turn in one run",
    "environment": "make the environment that an exporter with conflicting pins runs in",
    "bundle": "zip an export with everything an app needs, or check such a zip",
    "page": "serve the page that runs a bundle or export in a browser",
    "score": "score the programs of a bundle or export on a dataset, next to the student itself",
    "publish": "write folders into a DVC remote, without DVC or git",
    "suite": "score a model on the 38 tasks of the DataComp suite, or a registry of your own",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the work failed, 2 bad input, 3 the gate refused a promotion.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    first = int(os.environ.get("RANK", "0") or 0) == 0  # of the processes of `torchrun`: the others only warn
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(levelname)s %(message)s")
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
        sys.stderr.write(f"error: {type(error).__name__}: {error} (--debug shows the trace)\n")
        return 1


def _dispatch(command: str, arguments: list[str]) -> int:
    from mobileclip import commands

    stages = {row.stage for row in CHAIN}
    if command in stages:
        return commands.stage(command, arguments)
    if command not in TOOLS:
        known = ", ".join([*(row.stage for row in CHAIN), *TOOLS])
        sys.stderr.write(f"error: command: got '{command}', want one of {known}.\n")
        return 2
    tool: Any = getattr(commands, command.replace("-", "_"))
    return int(tool(_parser(command).parse_args(arguments)))


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"mobileclip {command}", description=TOOLS[command].capitalize() + ".")
    _MORE.get(command, lambda _: None)(parser)
    if command in {"run", "status"}:
        parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="one section per stage")
        _add_recipe(parser)
        parser.add_argument("--root", default="runs/local", help="folder or s3:// prefix; stage X writes ROOT/X")
        parser.add_argument("--source", default="data/raw", help="folder with pictures and captions")
        parser.add_argument("--towers", default="", help="folder with pretrained towers, if a teacher uses some")
    if command == "run":
        names = [row.stage for row in CHAIN]
        parser.add_argument("--from", dest="first", choices=names, default=names[0], help="first stage")
        parser.add_argument("--to", dest="last", choices=names, default=names[-1], help="last stage")
        parser.add_argument("--force", action="store_true", help="run stages that are current, too")
    if command == "verify":
        parser.add_argument("data", help="folder or URI with a manifest")
        parser.add_argument("--teachers", default="", help="train_teacher's output, to replay and re-embed views")
        parser.add_argument("--samples", type=int, default=16, help="samples whose views are replayed and re-embedded")
    if command == "trace":
        parser.add_argument("path", help="a file, a stage folder, or models:/NAME@champion")
        parser.add_argument(
            "--root", action="append", default=[], help="where else earlier stages or raw inputs lie; may be repeated"
        )
    if command == "plan":
        from mobileclip import plan_command

        plan_command.add_options(parser)
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
    return parser


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", help="a reinforced dataset to write as DataCompDR tars, or a folder of such tars to read")
    add("--out", required=True, help="output folder or s3:// prefix")
    writing = parser.add_argument_group("writing tars")
    add = writing.add_argument
    add("--encoding", choices=("npz", "pth.gz"), default="npz", help="vectors as float32 npz or bfloat16 pth.gz")
    add("--text-layout", choices=("new", "legacy"), default="new", help="synthetic captions' vectors apart or joined")
    add("--splits", nargs="+", choices=("train", "validation", "test"), default=["train"], help="splits to write")
    reading = parser.add_argument_group("reading tars")
    add = reading.add_argument
    add("--layout", default="", help="datacompdr, dfndr, or a reinforcement.json; default: the one beside the tars")
    add("--images", default="", help="pictures to join by uid: webdataset tars or a prepared dataset")
    add("--dtype", choices=("float16", "bfloat16", "float32", "int8"), default="float16", help="type of stored vectors")
    add("--license", default="unknown", help="license of pictures and captions that name none")
    add("--validation-share", type=float, default=0.0, help="share of samples, by hash of uid, held out")
    add("--shard-samples", type=int, default=1000, help="most samples per shard")
    add("--min-coverage", type=float, default=0.0, help="fail where fewer of the rows find their picture [share]")
    add("--same-bytes", action="store_true", help="leave out pictures that are not the bytes of the recorded sha256")
    parser.add_argument("--without-images", action="store_true", help="write or read no pictures")


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", help="output folder of export, or a bundle to check")
    add("--out", default="", help="folder of the bundle; default: the export folder")
    add("--version", default="", help="version in its name; default: the first 12 digits of the weights' digest")
    add("--page", action="store_true", help="with the page for browsers; npm gets ONNX Runtime Web once")


def _add_page(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, help="a bundle, or the output folder of export")
    add("--port", type=int, default=8000, help="port; 0 = any free one")
    add("--host", default="127.0.0.1", help="address; 0.0.0.0 lets phones of the same network in")


def _add_score(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", help="a bundle, or the output folder of export")
    add("--data", required=True, help="prepared dataset")
    add("--student", default="", help="output of distill: the same scores in PyTorch, and the paired difference")
    add("--image", default="float32", help="precision of the image program")
    add("--text", default="float32", help="precision of the text program")
    add("--format", default="onnx", help="format of both programs")
    add("--params", type=Path, default=Path("params.yaml"), help="its section `evaluate` says what is scored")
    add("--out", default="", help="where the numbers go as JSON")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="stage folder or raw dataset, local or s3://")
    add("--remote", required=True, help="the DVC remote: a folder or s3:// prefix")
    add("--pointers", default="", help="where FOLDER.dvc goes; default: beside a local FOLDER")


def _add_suite(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="", help="output of distill, a checkpoint folder, or NAME:TAG")
    add("--data", default="", help="folder or s3:// prefix with the tasks' folders")
    add("--out", default="", help="where results.jsonl and suite.json go")
    add("--registry", type=Path, default=None, help="YAML file with tasks; default: built in")
    add("--tasks", nargs="+", default=[], metavar="KEY", help="only these tasks")
    add("--require", action="store_true", help="fail where data is absent")
    add("--list", action="store_true", help="list the tasks and where their data comes from")
    add("--batch-size", type=int, default=128, help="pictures per forward pass")
    add("--confidence", type=float, default=0.95, help="coverage of the intervals")
    add("--seed", type=int, default=0, help="seed of the bootstrap")


def _add_bench_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("students", nargs="+", metavar="STUDENT", help="output of distill, or an architecture with random weights")
    add("--formats", nargs="+", default=["onnx"], help="onnx, executorch, litert")
    add("--precisions", nargs="+", default=["float32"], help="float32, float16, int8, int8_static, int8_weights")
    add("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads, each measured apart")
    add("--rounds", type=int, default=20, help="measured turns of each program")
    add("--out", default="", help="also write the rows there as JSON")


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="format whose exporter needs it: litert")


_MORE = {
    "bundle": _add_bundle,
    "page": _add_page,
    "score": _add_score,
    "convert": _add_convert,
    "publish": _add_publish,
    "suite": _add_suite,
    "bench-latency": _add_bench_latency,
    "environment": _add_environment,
}


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
