"""Commands about datasets and lineage: convert, verify, publish, trace. Loading this loads no torch."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mobileclip import storage
from mobileclip.cli import tables
from mobileclip.cli.options import Words, json_option
from mobileclip.errors import ConfigError

_SPLITS = click.Choice(["train", "validation", "test"])


@click.command(cls=Words)
@click.argument("data")
@click.option("--out", required=True, help="output folder or s3:// prefix")
@click.option(
    "--encoding",
    type=click.Choice(["npz", "pth.gz"]),
    default="npz",
    help="writing: vectors as float32 npz or bfloat16 pth.gz",
)
@click.option(
    "--text-layout",
    type=click.Choice(["new", "legacy"]),
    default="new",
    help="writing: synthetic captions' vectors apart or joined",
)
@click.option("--splits", type=_SPLITS, multiple=True, default=["train"], help="writing: splits to write")
@click.option(
    "--layout", default="", help="reading: datacompdr, dfndr, or a reinforcement.json; default: the one beside the tars"
)
@click.option("--images", default="", help="reading: images to join by uid: webdataset tars or a prepared dataset")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32", "int8"]),
    default="float16",
    help="reading: type of stored vectors",
)
@click.option("--license", default="unknown", help="reading: license of images and captions that name none")
@click.option("--validation-share", type=float, default=0.0, help="reading: share of samples, by hash of uid, held out")
@click.option("--shard-samples", type=int, default=1000, help="reading: most samples per shard")
@click.option(
    "--min-coverage", type=float, default=0.0, help="reading: fail where fewer of the rows find their image [share]"
)
@click.option(
    "--same-bytes", is_flag=True, help="reading: leave out images that are not the bytes of the recorded sha256"
)
@click.option("--without-images", is_flag=True, help="write or read no images")
def convert(data: str, out: str, **options: Any) -> int:
    """Write a reinforced dataset DATA as DataCompDR tars, or read such tars; which of both, the folder says."""
    from mobileclip import convert as conversion

    report = conversion.convert(data, out=out, options={**options, "splits": list(options["splits"])})
    sys.stdout.write(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return 0


@click.command()
@click.argument("data")
@click.option("--teachers", default="", help="train_teacher's output, to replay and re-embed views")
@click.option(
    "--samples", type=int, default=16, show_default=True, help="samples whose views are replayed and re-embedded"
)
@json_option
def verify(data: str, teachers: str, samples: int, as_json: bool) -> int:
    """Re-hash and check every file of the dataset DATA, and replay stored views; exit code 1 on damage."""
    from mobileclip.models.replay import verify as check

    del as_json  # the report is JSON anyway
    report = check(data, teachers=teachers, samples=samples)
    sys.stdout.write(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return 0


@click.command(cls=Words)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--remote", required=True, help="the DVC remote: a folder or s3:// prefix")
@click.option("--pointers", default="", help="where FOLDER.dvc goes; default: beside a local FOLDER")
def publish(folders: tuple[str, ...], remote: str, pointers: str) -> int:
    """Write stage folders or raw datasets into a DVC remote, and a pointer for git beside each."""
    from mobileclip.data.progress import progress_bar
    from mobileclip.storage import dvc_remote

    table = Table("folder", "md5", "files", "MB", "objects sent", "pointer", box=None)
    for folder in (uri.rstrip("/") for uri in folders):
        place = pointers or ("" if storage.is_s3(folder) else str(Path(folder).parent))
        if not place:
            raise ConfigError(f"publish: '{folder}' is no local folder, want --pointers, a folder for its .dvc file.")
        with progress_bar(desc=folder, unit="file") as bar:
            done = dvc_remote.publish(folder, remote=remote, progress=lambda _, bar=bar: bar.update())  # type: ignore[misc]
        pointer = storage.join(place, f"{done.path}.dvc")
        storage.write_bytes(pointer, done.pointer())
        table.add_row(folder, done.md5, f"{done.files:,}", f"{done.size / 1e6:,.1f}", f"{done.sent:,}", pointer)
    tables.show(table)
    return 0


@click.command()
@click.argument("path")
@click.option("--root", multiple=True, help="where else earlier stages or raw inputs lie; may be repeated")
@json_option
def trace(path: str, root: tuple[str, ...], as_json: bool) -> int:
    """Print the lineage of PATH: a file, a stage folder, or models:/NAME@champion.

    Exit code 1 where a digest disagrees.
    """
    from rich.console import Console

    from mobileclip.lineage import view
    from mobileclip.lineage.dvc import revisions
    from mobileclip.promotion.registered import trace as follow
    from mobileclip.tracking.origins import origins

    found = follow(path, roots=list(root))
    if as_json:
        sys.stdout.write(json.dumps(view.as_dict(found), indent=2, sort_keys=True) + "\n")
        return 1 if found.problems else 0
    facts = origins(found)
    for digest, revision in revisions(found).items():
        facts[digest] = facts.get(digest, {}) | revision
    Console().print(view.render(found, facts))
    return 1 if found.problems else 0
