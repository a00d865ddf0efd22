"""Rendering every drawing to a 96-pixel PNG on white, the same bytes every time."""

import io
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import resvg_py
from PIL import Image
from tqdm import tqdm

from examples.emoji.artists import Format, load_drawings
from examples.emoji.catalog import Concept
from examples.emoji.packages import Package
from mobileclip.errors import DataError

SIZE_PX = 96
WORKERS = 2
BATCH = 64

logger = logging.getLogger(__name__)

Task = tuple[Path, bytes, Format]


def render_all(
    artists: list[Package], *, archives: dict[str, Path], concepts: list[Concept], out: Path, size: int = SIZE_PX
) -> dict[str, int]:
    """Render all drawings to ``out/<artist>/<code points>.png``.

    The folder appears whole or not at all: pictures go to a temporary folder beside it, which then
    takes its name.

    Args:
        artists: the picture packages.
        archives: archive by package name.
        concepts: what to look for in each package.
        out: the folder of all pictures; an older one is replaced.
        size: edge of the square pictures in pixels.

    Returns:
        Pictures by artist.

    Raises:
        DataError: a drawing cannot be rendered; the sentence names it.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts: dict[str, int] = {}
    with ProcessPoolExecutor(max_workers=WORKERS) as pool:
        for package in artists:
            artist = str(package.picture_set)
            drawings, form = load_drawings(artist, archive=archives[package.name], concepts=concepts)
            (partial / artist).mkdir(parents=True)
            tasks: list[Task] = [(partial / artist / f"{key}.png", raw, form) for key, raw in drawings.items()]
            with tqdm(total=len(tasks), desc=f"render {artist}", unit="picture", disable=None) as bar:
                for done in pool.map(_render_batch, _batches(tasks), [size] * len(tasks)):
                    bar.update(done)
            counts[artist] = len(tasks)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return counts


def render_png(raw: bytes, *, form: Format, size: int = SIZE_PX) -> bytes:
    """Render one drawing.

    Args:
        raw: SVG text, or the bytes of a raster file with or without transparency.
        form: which of the two.
        size: edge in pixels.

    Returns:
        An RGB PNG of ``size`` x ``size``: the drawing fitted and centered on white.

    Raises:
        ValueError: the drawing is broken.
        OSError: likewise, from the raster decoder.
    """
    if form == "svg":
        # System fonts would make the bytes depend on the machine; no drawing needs one.
        raw = bytes(resvg_py.svg_to_bytes(svg_string=raw.decode(), width=size, height=size, skip_system_fonts=True))
    with Image.open(io.BytesIO(raw)) as image:
        drawing = image.convert("RGBA")
    # White first, size second: scaling transparent pixels would bleed their hidden color into edges.
    flat = Image.new("RGBA", drawing.size, "white")
    flat.alpha_composite(drawing)
    picture = _fit_on_white(flat.convert("RGB"), size=size)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _fit_on_white(image: Image.Image, *, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    scale = size / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return canvas


def _batches(tasks: list[Task]) -> Iterator[list[Task]]:
    for start in range(0, len(tasks), BATCH):
        yield tasks[start : start + BATCH]


def _render_batch(tasks: list[Task], size: int) -> int:
    for path, raw, form in tasks:
        try:
            path.write_bytes(render_png(raw, form=form, size=size))
        except (ValueError, OSError) as error:
            raise DataError(f"Drawing {path.stem} by {path.parent.name} cannot be rendered: {error}.") from error
    return len(tasks)
