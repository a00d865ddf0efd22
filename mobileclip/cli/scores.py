"""Commands that score: programs on a dataset, a model on the suite, one student against another."""

import json
import sys
from pathlib import Path

import click

from mobileclip import storage
from mobileclip.cli import tables
from mobileclip.cli.options import FILE, Words, params_option
from mobileclip.config import read_params
from mobileclip.errors import ConfigError


@click.command()
@click.argument("path")
@click.option("--data", required=True, help="prepared dataset")
@click.option("--student", default="", help="output of distill: the same scores in PyTorch, and the paired difference")
@click.option("--image", default="float32", show_default=True, help="precision of the image program")
@click.option("--text", default="float32", show_default=True, help="precision of the text program")
@click.option("--format", "kind", default="onnx", show_default=True, help="format of both programs")
@params_option
@click.option("--out", default="", help="where the numbers go as JSON")
def score(path: str, data: str, student: str, image: str, text: str, kind: str, params: Path, out: str) -> int:
    """Print scores of the programs of PATH (a bundle or an export), and their difference to PyTorch.

    The section `evaluate` of the params file says what is scored.
    """
    from mobileclip import manifest
    from mobileclip.formats import load
    from mobileclip.formats.measure import score as scoring
    from mobileclip.models import zoo

    programs = load(path, image=image, text=text, format=kind)
    reference = zoo.load("trained:student", trained=student) if student else None
    content = manifest.read(data)
    found = scoring.score(programs, data, content, read_params(params).evaluate, student=reference)
    if out:
        storage.write_bytes(out, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    tables.show(scoring.render(found))
    return 0


@click.command(cls=Words)
@click.option("--model", default="", help="output of distill, a checkpoint folder, or NAME:TAG")
@click.option("--data", default="", help="folder or s3:// prefix with the tasks' folders")
@click.option("--out", default="", help="where results.jsonl and suite.json go")
@click.option("--registry", type=FILE, default=None, help="YAML file with tasks; default: built in")
@click.option("--tasks", multiple=True, metavar="KEY", help="only these tasks")
@click.option("--require", is_flag=True, help="fail where data is absent")
@click.option("--list", "only_list", is_flag=True, help="list the tasks and where their data comes from")
@click.option("--batch-size", type=int, default=128, show_default=True, help="images per forward pass")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="coverage of the intervals")
@click.option("--seed", type=int, default=0, help="seed of the bootstrap")
def suite(
    model: str, data: str, out: str, registry: Path | None, tasks: tuple[str, ...], require: bool, only_list: bool,
    batch_size: int, confidence: float, seed: int,
) -> int:  # fmt: skip
    """Score a model on the registry's tasks; what has no data is named as absent."""
    from mobileclip.evaluation.suite import run as suites
    from mobileclip.evaluation.suite import table as suite_table
    from mobileclip.evaluation.suite import tasks as registries

    chosen = suites.select(registries.read(registry), list(tasks))
    if only_list:
        tables.show(suite_table.listing(chosen))
        return 0
    for name, value in {"model": model, "data": data, "out": out}.items():
        if not value:
            raise ConfigError(f"suite: --{name} is missing, --help says what it is.")
    summary = suites.run(
        suites.load(model), chosen, data=data, out=out, require=require,
        batch_size=batch_size, seed=seed, confidence=confidence,
    )  # fmt: skip
    tables.show(suite_table.render(summary))
    sys.stdout.write(f"{suite_table.sentence(summary)}\nrows: {storage.join(out, suites.ROWS)}\n")
    return 0


@click.command(cls=Words)
@click.argument("ours", nargs=-1, required=True, metavar="FOLDER...")
@click.option(
    "--against", multiple=True, required=True, metavar="FOLDER", help="as many of the other side, in the same order"
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="coverage of the intervals")
@click.option("--out", default="", help="where the rows go as JSON")
def compare(ours: tuple[str, ...], against: tuple[str, ...], confidence: float, out: str) -> int:
    """Say of every metric whether the first side is better, worse, or neither shown.

    FOLDER is an output of evaluate or of the suite; several = one per training seed.
    """
    from mobileclip.evaluation import compare as comparing

    sides = {"ours": list(ours), "theirs": list(against)}
    rows = comparing.compare(**sides, confidence=confidence)
    if out:
        storage.write_bytes(out, comparing.as_json(rows, **sides, confidence=confidence))
    tables.show(comparing.render(rows, seeds=len(ours)))
    return 0
