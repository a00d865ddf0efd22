"""Commands beside the chain: what each takes and does. Loading this loads neither torch nor a runtime."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mobileclip import storage
from mobileclip.cli import plan as plan_command
from mobileclip.cli import use
from mobileclip.config import read_params
from mobileclip.errors import ConfigError


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


def convert(arguments: argparse.Namespace) -> int:
    """Write a dataset as DataCompDR tars, or read such tars; which of both, the folder says."""
    from mobileclip import convert as conversion

    report = conversion.convert(arguments.data, out=arguments.out, options=vars(arguments))
    sys.stdout.write(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return 0


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", help="output folder of export, or a bundle to check")
    add("--out", default="", help="folder of the bundle; default: the export folder")
    add("--version", default="", help="version in its name; default: the first 12 digits of the weights' digest")
    add("--page", action="store_true", help="with the page for browsers; npm gets ONNX Runtime Web once")


def bundle(arguments: argparse.Namespace) -> int:
    """Bundle an export, or check a bundle: every checksum, the contract, nothing beside what is listed."""
    from mobileclip.formats.bundle import archive as bundles

    path = Path(arguments.path)
    if path.suffix == bundles.SUFFIX:
        agreed = bundles.verify(path)
        sys.stdout.write(f"{path.name}: whole; {agreed.model}, {len(agreed.programs)} programs\n")
        return 0
    from mobileclip.formats import contract
    from mobileclip.formats.bundle import assemble as shipping
    from mobileclip.formats.bundle import web

    if arguments.page:
        shipping.check_page([program.format for program in contract.read(path).programs], key="bundle: got --page")
    extra = web.members() if arguments.page else {}
    written = bundles.write(path, Path(arguments.out or path), version=arguments.version, extra=extra)
    sys.stdout.write(f"{storage.digest_file(written)}  {written}\n")
    return 0


def _add_page(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, help="a bundle, or the output folder of export")
    add("--port", type=int, default=8000, help="port; 0 = any free one")
    add("--host", default="127.0.0.1", help="address; 0.0.0.0 lets phones of the same network in")


def page(arguments: argparse.Namespace) -> int:
    """Serve a bundle's page until interrupted."""
    from mobileclip.formats.bundle import serve

    with serve.serving(arguments.path, host=arguments.host, port=arguments.port) as server:
        sys.stdout.write(f"{serve.address(server)}   (Ctrl-C ends)\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0


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


def score(arguments: argparse.Namespace) -> int:
    """Print retrieval and zero-shot scores of exported programs, and their difference to PyTorch."""
    from mobileclip import manifest
    from mobileclip.formats import load
    from mobileclip.formats.measure import score as scoring
    from mobileclip.models import zoo

    programs = load(arguments.path, image=arguments.image, text=arguments.text, format=arguments.format)
    student = zoo.load("trained:student", trained=arguments.student) if arguments.student else None
    content = manifest.read(arguments.data)
    found = scoring.score(programs, arguments.data, content, read_params(arguments.params).evaluate, student=student)
    if arguments.out:
        storage.write_bytes(arguments.out, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    Console(width=max(130, Console().width)).print(scoring.render(found))
    return 0


def _add_publish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="stage folder or raw dataset, local or s3://")
    add("--remote", required=True, help="the DVC remote: a folder or s3:// prefix")
    add("--pointers", default="", help="where FOLDER.dvc goes; default: beside a local FOLDER")


def publish(arguments: argparse.Namespace) -> int:
    """Write folders into a DVC remote, and a pointer for git beside each."""
    from tqdm import tqdm

    from mobileclip.storage import dvc_remote

    table = Table("folder", "md5", "files", "MB", "objects sent", "pointer", box=None)
    for folder in (uri.rstrip("/") for uri in arguments.folders):
        place = arguments.pointers or ("" if storage.is_s3(folder) else str(Path(folder).parent))
        if not place:
            raise ConfigError(f"publish: '{folder}' is no local folder, want --pointers, a folder for its .dvc file.")
        with tqdm(desc=folder, unit="file", disable=None) as bar:
            done = dvc_remote.publish(folder, remote=arguments.remote, progress=lambda _, bar=bar: bar.update())  # type: ignore[misc]
        pointer = storage.join(place, f"{done.path}.dvc")
        storage.write_bytes(pointer, done.pointer())
        table.add_row(folder, done.md5, f"{done.files:,}", f"{done.size / 1e6:,.1f}", f"{done.sent:,}", pointer)
    Console(width=max(160, Console().width)).print(table)
    return 0


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


def suite(arguments: argparse.Namespace) -> int:
    """Score a model on the registry's tasks; what has no data is named as absent."""
    from mobileclip.evaluation.suite import run as suites
    from mobileclip.evaluation.suite import table as suite_table
    from mobileclip.evaluation.suite import tasks as registry

    tasks = suites.select(registry.read(arguments.registry), arguments.tasks)
    if arguments.list:
        Console(width=max(220, Console().width)).print(suite_table.listing(tasks))
        return 0
    for name in ("model", "data", "out"):
        if not getattr(arguments, name):
            raise ConfigError(f"suite: --{name} is missing, --help says what it is.")
    summary = suites.run(
        suites.load(arguments.model), tasks, data=arguments.data, out=arguments.out, require=arguments.require,
        batch_size=arguments.batch_size, seed=arguments.seed, confidence=arguments.confidence,
    )  # fmt: skip
    Console(width=max(120, Console().width)).print(suite_table.render(summary))
    sys.stdout.write(f"{suite_table.sentence(summary)}\nrows: {storage.join(arguments.out, suites.ROWS)}\n")
    return 0


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("ours", nargs="+", metavar="FOLDER", help="output of evaluate or of the suite; several = one per training seed")
    add("--against", nargs="+", required=True, metavar="FOLDER", help="as many of the other side, in the same order")
    add("--confidence", type=float, default=0.95, help="coverage of the intervals")
    add("--out", default="", help="where the rows go as JSON")


def compare(arguments: argparse.Namespace) -> int:
    """Say of every metric whether the first side is better, worse, or neither shown."""
    from mobileclip.evaluation import compare as comparing

    sides = {"ours": arguments.ours, "theirs": arguments.against}
    rows = comparing.compare(**sides, confidence=arguments.confidence)
    if arguments.out:
        storage.write_bytes(arguments.out, comparing.as_json(rows, **sides, confidence=arguments.confidence))
    Console(width=max(120, Console().width)).print(comparing.render(rows, seeds=len(arguments.ours)))
    return 0


def _add_bench_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("students", nargs="+", metavar="STUDENT", help="output of distill, or an architecture with random weights")
    add("--formats", nargs="+", default=["onnx"], help="onnx, executorch, litert")
    add("--precisions", nargs="+", default=["float32"], help="float32, float16, int8, int8_static, int8_weights, ...")
    add("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads, each measured apart")
    add("--rounds", type=int, default=20, help="measured turns of each program")
    add("--out", default="", help="also write the rows there as JSON")


def bench_latency(arguments: argparse.Namespace) -> int:
    """Time students in every format and precision, in one interleaved run."""
    from mobileclip.cli import tables
    from mobileclip.formats.measure import bench

    rows = bench.compare(
        arguments.students, formats=arguments.formats, precisions=arguments.precisions, threads=arguments.threads,
        rounds=arguments.rounds,
    )  # fmt: skip
    Console(width=max(150, Console().width)).print(tables.render(rows))
    if arguments.out:
        storage.write_bytes(arguments.out, (json.dumps(rows, indent=2) + "\n").encode())
    return 0


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="format whose exporter needs it: coreai, litert")


def environment(arguments: argparse.Namespace) -> int:
    """Make an exporter's own environment."""
    from mobileclip.formats import environment as environments

    sys.stdout.write(f"{environments.make(arguments.name)}\n")
    return 0


def _add_devices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="name in the model registry")
    add("results", help="results file, or a folder with *.device.json (docs/on-device.md)")
    add("--version", default="champion", help="version or alias whose programs were measured")


def devices(arguments: argparse.Namespace) -> int:
    """Record latency that was measured on devices with a registered version."""
    from mobileclip.cli import tables
    from mobileclip.promotion import devices as measured

    found = measured.attach(arguments.model, arguments.results, version=arguments.version)
    rows = [{"device": tag.removeprefix(measured.TAG), "both towers, ms": ms} for tag, ms in found.items()]
    Console().print(tables.render(rows))
    return 0


def _add_folder(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="a bundle, export folder, root of a run, student's folder, hf-hub:OWNER/NAME or NAME:TAG")
    add("folder", help="images; subfolders are read, what is hidden is not")
    add("--index", type=Path, default=None, help="folder of the index; default: .mobileclip within the folder")
    add("--image", default="", help="precision of a bundle's image program; default: the most exact one")
    add("--batch-size", type=int, default=32, help="images that are in memory at a time")


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--text", default="", help="precision of a bundle's text program; default: the most exact one")
    add("--top", type=int, default=24, help="most images to show, of classes each")
    add("--json", dest="json_", action="store_true", help="print JSON instead of a table")
    add("--sheet", type=Path, default=None, metavar="FILE", help="the contact sheet (HTML); default: beside the index")


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    add = parser.add_argument
    add("query", nargs="?", default="", help='what to look for, for example "a dog on grass"')
    add("--like", type=Path, nargs="+", default=[], metavar="IMAGE", help="example images in place of a text")
    _add_sheet(parser)


def search(arguments: argparse.Namespace) -> int:
    """Find the images of a folder that fit a text, or look like given images."""
    return use.search(**vars(arguments))


def _add_classify(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    add = parser.add_argument
    add("--labels", nargs="+", required=True, help="labels with commas between, or a file with one per line")
    add("--template", nargs="+", default=["a photo of a {}."], help="prompts with {} for the label")
    add("--out", default="", help="every image's label and probabilities: .csv, .json or .jsonl")
    _add_sheet(parser)


def classify(arguments: argparse.Namespace) -> int:
    """Give every image of a folder the most likely of several labels."""
    return use.classify(**vars(arguments))


def _add_embed(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--out", required=True, help="file or s3:// object that ends in .parquet or .npz")


def embed(arguments: argparse.Namespace) -> int:
    """Write the embeddings of a folder's images for other tools."""
    return use.embed(**vars(arguments))


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "plan": (plan_command.add_options, plan_command.run),
    "convert": (_add_convert, convert),
    "bundle": (_add_bundle, bundle),
    "page": (_add_page, page),
    "score": (_add_score, score),
    "search": (_add_search, search),
    "classify": (_add_classify, classify),
    "embed": (_add_embed, embed),
    "publish": (_add_publish, publish),
    "suite": (_add_suite, suite),
    "compare": (_add_compare, compare),
    "bench-latency": (_add_bench_latency, bench_latency),
    "environment": (_add_environment, environment),
    "devices": (_add_devices, devices),
}
"""By name: adds the options, does the work."""
