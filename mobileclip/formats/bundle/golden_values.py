"""Golden values: a few texts and a picture by formula with the student's own tokens and embeddings.

An app runs them once at start and knows that its tokenizer, its pixels and its runtime are right; no picture has to be
shipped for it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.data.preprocess import image_tensor
from mobileclip.formats.contract import Program
from mobileclip.formats.export_job import BATCH
from mobileclip.formats.proof import encode_in_batches, one_thread
from mobileclip.formats.runtime import load_program
from mobileclip.models.zoo import Clip

FILE_NAME = "golden.json"
TEXTS = [
    "a photo of a dog.",
    "Two cats, one sofa & 3 cushions!",
    "It’s raining in Zürich — 12°C",
    "東京タワーの夜景",
    "👩‍🚀 astronaut on the moon 🌕",
    "ΟΔΥΣΣΕΥΣ",
    "",
    "a very long caption " * 40,
]
FORMULA = "uint8[channel, row, column] = (5 * column + 3 * row + 80 * channel) mod 256; divided by 255"
_DIGITS = 6
_OWN_DIGITS = 4


def write(clip: Clip, folder: Path, programs: Sequence[Program] = ()) -> Path:
    """Write `golden.json` from the student itself in PyTorch float32, and from the programs.

    Args:
        clip: The student.
        folder: Where it goes, and where the programs lie.
        programs: Those that run in their own runtime here tell their embeddings.
    """
    path, values = folder / FILE_NAME, describe(clip)
    values["programs"] = {p.path: _own(values, p, folder, clip.preprocess.size) for p in programs if p.executed}
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def describe(clip: Clip) -> dict[str, Any]:
    """Texts, token ids and embeddings; the picture's formula and embedding."""
    pixels = torch.from_numpy(picture(clip.preprocess.size))
    with one_thread():
        image_features = clip.encode_image(image_tensor(pixels, clip.preprocess))
        text_features = clip.encode_text(TEXTS)
    return {
        "texts": TEXTS,
        "tokens": clip.tokenizer(TEXTS).tolist(),
        "text_features": _rounded(text_features),
        "picture": FORMULA,
        "image_features": _rounded(image_features),
    }


def picture(size: int) -> NDArray[np.uint8]:
    """The picture of `FORMULA`, uint8 [1, 3, size, size]."""
    channel, row, column = np.ogrid[:3, :size, :size]
    return ((5 * column + 3 * row + 80 * channel) % 256).astype(np.uint8)[None]


def _own(values: dict[str, Any], program: Program, folder: Path, size: int) -> list[list[float]]:
    """What a program itself makes of the golden values: a lossy one is held to its own answers."""
    pixels, tokens = picture(size).astype(np.float32) / 255, np.array(values["tokens"], np.int32)
    rows: NDArray[Any] = pixels if program.tower == "image" else tokens
    got = encode_in_batches(load_program(folder / program.path, threads=1), rows, BATCH)
    return [[round(value, _OWN_DIGITS) for value in row] for row in got.tolist()]


def _rounded(features: torch.Tensor) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in row] for row in features.tolist()]
