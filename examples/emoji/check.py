"""Checking on the data themselves that the converted towers are the pretrained models they claim to be.

Weights that were permuted or cut would still load and give finite numbers; they would not put two
artists' drawings of one thing nearer to each other than drawings of different things.
"""

import json
import logging
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image

from examples.emoji.towers import IMAGE_ARCHITECTURE, IMAGE_TOWER, TEXT_TOWER
from mobileclip.errors import IntegrityError

SAMPLES = 48
SIZE_PX = 96
# Measured: image tower 0.50, untrained 0.18 to 0.20, with eleven pairs of like-shaped layers swapped 0.40;
# text tower 0.62, untrained 0.16 to 0.21.
MIN_IMAGE_MARGIN = 0.44
MIN_TEXT_MARGIN = 0.40

SENTENCE_PAIRS = [
    ("a dog plays in the park", "a puppy runs on the grass"),
    ("a cup of hot coffee", "a mug with an espresso"),
    ("the train leaves the station", "a locomotive on the railway"),
    ("a birthday cake with candles", "a sweet dessert for a party"),
]

logger = logging.getLogger(__name__)


def check_towers(out: Path) -> dict[str, float]:
    """Load both towers as a user would and compare what must be near with what must be far.

    Args:
        out: the folder with ``captions.jsonl``, ``images`` and ``towers``.

    Returns:
        ``image_margin`` and ``text_margin``: mean cosine of matching pairs minus that of the others.

    Raises:
        IntegrityError: features are not finite, or a margin is too small.
    """
    first, second = _paired_pictures(out, artists=("noto", "emojione"))
    margins = {
        "image_margin": margin(image_features(out, paths=first), image_features(out, paths=second)),
        "text_margin": margin(*(text_features(out, texts=list(side)) for side in zip(*SENTENCE_PAIRS, strict=True))),
    }
    for name, least in (("image_margin", MIN_IMAGE_MARGIN), ("text_margin", MIN_TEXT_MARGIN)):
        if not margins[name] >= least:  # also true for NaN
            raise IntegrityError(f"The pretrained towers have {name} {margins[name]:.3f}; at least {least} is wanted.")
    logger.info("towers: image margin %(image_margin).3f, text margin %(text_margin).3f", margins)
    return margins


def margin(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean cosine of the pairs (row i, row i) minus the mean of all other pairs (row i, row j).

    Both are ``[N, D]``. Each side is centered first: features share a large common part that says nothing.
    """
    first, second = (
        torch.nn.functional.normalize(side - side.mean(dim=0), dim=1) for side in (first.double(), second.double())
    )
    cosines = first @ second.T
    matching = cosines.diagonal().mean()
    others = (cosines.sum() - cosines.diagonal().sum()) / (cosines.numel() - len(cosines))
    return float(matching - others)


@torch.inference_mode()
def image_features(out: Path, *, paths: list[Path]) -> torch.Tensor:
    """Pooled features ``[N, 1280]`` of the image tower, for RGB scaled to [-1, 1]."""
    model = timm.create_model(IMAGE_ARCHITECTURE, pretrained=False)
    model.load_state_dict(safetensors.torch.load_file(out / "towers" / IMAGE_TOWER))
    model.eval().reset_classifier(0)
    arrays = [np.asarray(Image.open(path).convert("RGB").resize((SIZE_PX, SIZE_PX))) for path in paths]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    features: torch.Tensor = model(pixels)
    return features


@torch.inference_mode()
def text_features(out: Path, *, texts: list[str]) -> torch.Tensor:
    """Mean-pooled sentence features ``[N, 384]`` of the text tower, padding left out."""
    from transformers import AutoModel, AutoTokenizer

    folder = out / "towers" / TEXT_TOWER
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(texts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder, local_files_only=True).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    features: torch.Tensor = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return features


def _paired_pictures(out: Path, *, artists: tuple[str, str]) -> tuple[list[Path], list[Path]]:
    """The same concepts by two artists, spread evenly over the training set."""
    drawn: dict[str, dict[str, Path]] = {artist: {} for artist in artists}
    for line in (out / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["artist"] in drawn and row["split"] == "train":
            drawn[row["artist"]][row["concept"]] = out / row["image"]
    shared = sorted(drawn[artists[0]].keys() & drawn[artists[1]].keys())
    chosen = shared[:: max(1, len(shared) // SAMPLES)][:SAMPLES]
    return [drawn[artists[0]][key] for key in chosen], [drawn[artists[1]][key] for key in chosen]
