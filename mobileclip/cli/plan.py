"""`mobileclip plan`: its options, and its table."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobileclip.config import Params, read_params
from mobileclip.planning import cost as plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="views, captions, teachers, shard size; default of all below",
    )
    add("--samples", type=int, required=True, help="image-text pairs")
    add("--views", type=int, help="stored views per picture")
    add("--captions", type=int, help="synthetic captions per picture")
    add("--teachers", type=int, help="number of teachers")
    add("--dims", type=int, default=768, help="width of a teacher's embeddings")
    add("--picture-bytes", type=float, default=70e3, help="a picture with its text [bytes]")
    add("--gpu", choices=sorted(plan.GPUS), default="A100", help="type of the GPUs")
    add("--gpus", type=int, default=8, help="number of GPUs")
    add("--probe", action="store_true", help="time this machine's own GPU or CPU instead, with the models below")
    add("--teacher", default="ViT-L-14", help="probe: architecture of a teacher")
    add("--student", default="ViT-B-16", help="probe: architecture of the student")
    add(
        "--captioner", default="", help="probe: architecture of the captioner, such as coca_ViT-L-14; empty = not timed"
    )
    add("--seconds", type=float, default=5.0, help="probe: shortest time of each measurement [s]")
    add("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compute and print.

    Raises:
        ConfigError: An option is out of range, or the params file is wrong.
    """
    params = read_params(arguments.params) if arguments.params.is_file() else Params()
    given = {name: getattr(arguments, name) for name in ("views", "captions", "teachers", "dims", "picture_bytes")}
    asked = plan.demand_of(params, arguments.samples)
    demand = replace(asked, **{name: value for name, value in given.items() if value is not None})
    rates, speed = _rates(arguments)
    options = plan.settings(demand)
    found = {name: plan.plan(each, gpus=arguments.gpus, speed=speed, rates=rates) for name, each in options.items()}
    if arguments.json:
        first = next(iter(found.values()))
        sys.stdout.write(json.dumps(plan.as_json(demand, first, rates), indent=2, sort_keys=True) + "\n")
        return 0
    where = "this machine" if arguments.probe else f"{arguments.gpus} {arguments.gpu}"
    kinds = f"{demand.views} views, {demand.captions} captions, {demand.teachers} teachers"
    table = Table("", *found, box=None, title=f"{demand.samples:,} samples, {kinds}, {where}")
    for row in plan.rows(list(found.values())):
        table.add_row(*(escape(cell) for cell in row))
    Console(width=max(120, Console().width)).print(table)
    sys.stdout.write(f"Times: {rates.source}. Expect a factor of two.\n")
    return 0


def _rates(arguments: argparse.Namespace) -> tuple[plan.Rates, float]:
    if not arguments.probe:
        return plan.PAPER, plan.GPUS[arguments.gpu]
    from mobileclip.planning import probe

    names = {name: getattr(arguments, name) for name in ("teacher", "student", "captioner", "seconds")}
    return probe.measure(**names), 1.0
