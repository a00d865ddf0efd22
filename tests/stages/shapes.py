"""A small prepared dataset: colored shapes with names as alt text and sentences as better captions."""

import io
import json
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

from mobileclip.config import Prepare
from mobileclip.stages import prepare
from mobileclip.tracking.protocol import LogTracker

COLORS = {"red": "#d02020", "green": "#20a020", "blue": "#2040d0", "yellow": "#e0c020", "black": "#101010"}
SHAPES = ("circle", "square", "triangle", "cross")


def make(
    folder: Path, *, sizes: tuple[int, ...] = (20, 28, 36), shard_samples: int = 16, validation: bool = True,
    tail: str = "",
) -> str:  # fmt: skip
    """Draw every color, shape and size, prepare them (the middle size is the validation split), return the folder.

    Args:
        folder: Gets `source` and `prepare`.
        sizes: Of the shapes [px].
        shard_samples: Samples of a shard.
        validation: Hold out a split.
        tail: What every better caption ends with.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    rows = []
    for color, shape, size in product(COLORS, SHAPES, sizes):
        name = f"{color}-{shape}-{size}.png"
        held_out = validation and size == sorted(sizes)[len(sizes) // 2]
        (source / name).write_bytes(draw(COLORS[color], shape, size))
        rows.append(
            {
                "image": name, "captions": [f"{color} {shape}", f"{shape}, {color}"],
                "descriptions": [
                    f"a picture of a {color} {shape} on white{tail}", f"a drawing that shows a {color} {shape}{tail}",
                ],
                "license": "CC0-1.0", "split": "validation" if held_out else "train",
            }
        )  # fmt: skip
    (source / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(folder / "prepare")
    prepare.run(Prepare(shard_samples=shard_samples), out=out, tracker=LogTracker(), source=str(source))
    return out


def draw(color: str, shape: str, size: int) -> bytes:
    """One colored shape of `size` pixels on a white 64 px PNG."""
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    low, high = 32 - size // 2, 32 + size // 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=color)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=color)
    elif shape == "triangle":
        pen.polygon([(32, low), (low, high), (high, high)], fill=color)
    else:
        pen.rectangle((29, low, 35, high), fill=color)
        pen.rectangle((low, 29, high, 35), fill=color)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
