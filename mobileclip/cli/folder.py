"""Options of the commands that use a model on a folder of images; what they do stands in `mobileclip.cli.use`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mobileclip.cli import use
from mobileclip.cli.options import FILE, Words

F = TypeVar("F", bound=Callable[..., Any])


def _folder(function: F) -> F:
    for option in (
        click.option("--batch-size", type=int, default=32, show_default=True, help="images in memory at a time"),
        click.option("--image", default="", help="precision of a bundle's image program; default: the most exact one"),
        click.option("--index", type=FILE, default=None, help="folder of the index; default: FOLDER/.mobileclip"),
        click.argument("folder"),
        click.argument("model"),
    ):  # fmt: skip
        function = option(function)
    return function


def _sheet(function: F) -> F:
    for option in (
        click.option("--sheet", type=FILE, default=None, help="the contact sheet (HTML); default: beside the index"),
        click.option("--json", "json_", is_flag=True, help="print JSON instead of a table"),
        click.option("--top", type=int, default=24, show_default=True, help="most images to show, of classes each"),
        click.option("--text", default="", help="precision of a bundle's text program; default: the most exact one"),
    ):
        function = option(function)
    return function


@click.command(cls=Words)
@_folder
@click.argument("query", default="")
@click.option("--like", type=FILE, multiple=True, metavar="IMAGE", help="example images in place of a text")
@_sheet
def search(**given: Any) -> int:
    """Find the images of FOLDER that fit the text QUERY, or look like given images.

    MODEL is a bundle, export folder, root of a run, student's folder, hf-hub:OWNER/NAME or NAME:TAG. Subfolders are
    read, what is hidden is not.
    """
    return use.search(**given)


@click.command(cls=Words)
@_folder
@click.option("--labels", multiple=True, required=True, help="labels with commas between, or a file with one per line")
@click.option("--template", multiple=True, default=["a photo of a {}."], help="prompts with {} for the label")
@click.option("--out", default="", help="every image's label and probabilities: .csv, .json or .jsonl")
@_sheet
def classify(**given: Any) -> int:
    """Give every image of FOLDER the most likely of several labels, by MODEL (see `mobileclip search --help`)."""
    return use.classify(**given)


@click.command()
@_folder
@click.option("--out", required=True, help="file or s3:// object that ends in .parquet or .npz")
def embed(model: str, folder: str, out: str, index: Path | None, image: str, batch_size: int) -> int:
    """Write the embeddings by MODEL of the images of FOLDER for other tools."""
    return use.embed(model, folder, out=out, index=index, image=image, batch_size=batch_size)
