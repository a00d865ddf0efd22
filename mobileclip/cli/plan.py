"""Commands to plan with: what a reinforced dataset costs, and which architectures there are."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from mobileclip.cli import tables
from mobileclip.cli.options import json_option, params_option
from mobileclip.config import Params, read_params
from mobileclip.planning import cost


@click.command()
@params_option
@click.option("--samples", type=int, required=True, help="image-text pairs")
@click.option("--views", type=int, help="stored views per image")
@click.option("--captions", type=int, help="synthetic captions per image")
@click.option("--teachers", type=int, help="number of teachers")
@click.option("--dims", type=int, default=768, show_default=True, help="width of a teacher's embeddings")
@click.option("--picture-bytes", type=float, default=70e3, show_default=True, help="an image with its text [bytes]")
@click.option("--gpu", type=click.Choice(sorted(cost.GPUS)), default="A100", show_default=True, help="type of the GPUs")
@click.option("--gpus", type=int, default=8, show_default=True, help="number of GPUs")
@click.option("--probe", is_flag=True, help="time this machine's own GPU or CPU instead, with the models below")
@click.option("--teacher", default="ViT-L-14", show_default=True, help="probe: architecture of a teacher")
@click.option("--student", default="ViT-B-16", show_default=True, help="probe: architecture of the student")
@click.option(
    "--captioner", default="", help="probe: architecture of the captioner, such as coca_ViT-L-14; empty = not timed"
)
@click.option(
    "--seconds", type=float, default=5.0, show_default=True, help="probe: shortest time of each measurement [s]"
)
@json_option
def plan(params: Path, samples: int, gpu: str, gpus: int, probe: bool, as_json: bool, **given: Any) -> int:
    """Estimate GPU-hours, storage, shards and groups of a reinforced dataset, and when it pays.

    Views, captions, teachers and shard size are those of the params file where no option says otherwise.
    """
    asked = cost.demand_of(read_params(params) if params.is_file() else Params(), samples)
    names = ("views", "captions", "teachers", "dims", "picture_bytes")
    demand = replace(asked, **{name: given[name] for name in names if given[name] is not None})
    rates, speed = cost.PAPER, cost.GPUS[gpu]
    if probe:
        from mobileclip.planning import probe as probing

        rates = probing.measure(**{name: given[name] for name in ("teacher", "student", "captioner", "seconds")})
        speed = 1.0
    found = {name: cost.plan(each, gpus=gpus, speed=speed, rates=rates) for name, each in cost.settings(demand).items()}
    if as_json:
        first = next(iter(found.values()))
        sys.stdout.write(json.dumps(cost.as_json(demand, first, rates), indent=2, sort_keys=True) + "\n")
        return 0
    where = "this machine" if probe else f"{gpus} {gpu}"
    kinds = f"{demand.views} views, {demand.captions} captions, {demand.teachers} teachers"
    table = Table("", *found, box=None, title=f"{demand.samples:,} samples, {kinds}, {where}")
    for row in cost.rows(list(found.values())):
        table.add_row(*(escape(cell) for cell in row))
    tables.show(table)
    sys.stdout.write(f"Times: {rates.source}. Expect a factor of two.\n")
    return 0


@click.command()
@json_option
def models(as_json: bool) -> int:
    """List the architectures with their sizes."""
    from mobileclip.models.listing import HEADINGS, describe_models

    found = describe_models()
    if as_json:
        # JSON has no NaN: what is not known is null.
        rows = [{k: None if v != v else v for k, v in asdict(row).items()} for row in found]  # noqa: PLR0124
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    table = Table(*HEADINGS, box=None)
    for row in found:
        table.add_row(*row.cells())
    tables.show(table)
    return 0
