"""Options that several commands share, and options that take several words."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
params_option = click.option(
    "--params",
    type=FILE,
    default="params.yaml",
    show_default=True,
    help="params file; what it leaves out has its default",
)
recipe_option = click.option(
    "--recipe", type=FILE, multiple=True, metavar="FILE",
    help="keys that differ from the params file (examples/recipes); may be repeated, the last one wins",
)  # fmt: skip
model_argument = click.argument("model")


def place_options(function: F) -> F:
    """Where a chain works: `--root`, `--source`, `--towers`."""
    for option in (
        click.option("--towers", default="", help="folder with pretrained towers, if a teacher uses some"),
        click.option("--source", default="data/raw", show_default=True, help="folder with images and captions"),
        click.option("--root", default="runs/local", show_default=True, help="folder or s3:// prefix of the run"),
    ):  # fmt: skip
        function = option(function)
    return function


class Words(click.Command):
    """A command whose repeatable options also take several words: `--formats onnx litert`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write `--formats A B` as `--formats A --formats B`."""
        several = {o for p in self.params if isinstance(p, click.Option) and p.multiple for o in p.opts}
        words: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-") and word != "-":
                current = word if word in several else ""
                words += [] if current else [word]
            else:
                words += [current, word] if current else [word]
        return super().parse_args(ctx, words)


def notes() -> Console:
    """Where a command tells what it does, beside its result: stderr, silent with --quiet."""
    return Console(stderr=True, quiet=bool(os.environ.get("TQDM_DISABLE")))
