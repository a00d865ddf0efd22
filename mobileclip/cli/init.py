"""`mobileclip init`: look at a folder of images and captions, and write a params file for it."""

import sys
from pathlib import Path

import click

from mobileclip.cli.options import FILE, notes
from mobileclip.errors import ConfigError


@click.command()
@click.argument("source", type=FILE)
@click.option(
    "--table", default="captions.jsonl", show_default=True, help="caption table inside SOURCE, if there is one"
)
@click.option("--out", type=FILE, default="own.yaml", show_default=True, help="params file to write")
@click.option(
    "--gpu", is_flag=True, help="published teachers and captioner, MobileCLIP2-S0; default: tiny ones from scratch"
)
@click.option("--force", is_flag=True, help="overwrite the params file")
def init(source: Path, table: str, out: Path, gpu: bool, force: bool) -> int:
    """Look at the images and captions in SOURCE, say what is there, and write a params file for them."""
    from mobileclip.data.survey import survey
    from mobileclip.preflight.draft import draft

    if out.exists() and not force:
        raise ConfigError(f"out: '{out}' is there already, want another name or --force.")
    if not source.exists():
        raise ConfigError(f"source: got '{source}', there is no such folder.")
    found = survey(source, table)
    for line in found.lines():
        notes().print(line, markup=False, highlight=False, soft_wrap=True)
    out.write_text(draft(found, str(source), gpu=gpu), encoding="utf-8")
    if found.usable < 50:
        notes().print("fewer than 50 images can be used: enough to see it run, not to learn from", soft_wrap=True)
    sys.stdout.write(f"params: {out}\nrun: mobileclip run --params {out} --source {source} --root runs/own\n")
    return 0
