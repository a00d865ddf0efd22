"""The table of `mobileclip models`: size, input, normalization and license of every model that has a name here."""

import contextlib
import hashlib
import json
import math
import os
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mobileclip import storage
from mobileclip.models import zoo
from mobileclip.models.architectures import own_names
from mobileclip.models.published import APPLE_LICENSE, OPENAI, PLAIN, VARIANTS, Variant
from mobileclip.models.reparameterize import reparameterize

_HERE = Path(__file__).parent
_FIGURES = 6
_STATISTICS = {PLAIN: "0 / 1", OPENAI: "OpenAI"}


@dataclass(frozen=True)
class Row:
    """One model; parameters in millions, as trained and with folded branches.

    Attributes:
        model: Name.
        image: Parameters of the image tower while training.
        text: Parameters of the text tower while training.
        total: Both and the logit scale.
        folded_image: Image tower after reparameterization.
        folded_text: Text tower after reparameterization.
        folded_total: The model after reparameterization.
        size: Input width and height [pixels].
        context: Tokens.
        statistics: Mean and standard deviation of the pixels.
        interpolation: Of the resizing.
        weights: Tag of the published weights; empty = none.
        license: License of the published weights; empty = none.
    """

    model: str
    image: float
    text: float
    total: float
    folded_image: float
    folded_text: float
    folded_total: float
    size: int
    context: int
    statistics: str
    interpolation: str
    weights: str
    license: str

    def cells(self) -> list[str]:
        """As printed: millions with three digits, nothing for what is not known."""
        return [_cell(value) for value in astuple(self)]


HEADINGS = (
    "model", "image M", "text M", "total M", "folded image M", "folded text M", "folded total M", "px", "tokens",
    "mean/std", "resize", "weights", "license",
)  # fmt: skip


def describe_models() -> list[Row]:
    """All published variants, then the project's own architectures.

    Parameters are counted on modules of torch's meta device: the real architectures, without storage.
    """
    return [describe(name) for name in dict.fromkeys([*VARIANTS, *own_names()])]


def describe(name: str) -> Row:
    """The row of one architecture name; a tower that needs files of its own (`text/`) has NaN counts.

    Raises:
        ConfigError: Unknown name.
    """
    config = zoo.architecture(name)
    preprocess = zoo.default_preprocess(name, config)
    counts = [math.nan] * _FIGURES if config["text_cfg"].get("hf_model_name") == "text" else _remembered(config)
    variant = VARIANTS.get(name)
    statistics = _STATISTICS.get((preprocess.mean, preprocess.std), "own")
    image, text, total, folded_image, folded_text, folded_total = counts
    return Row(
        name, image, text, total, folded_image, folded_text, folded_total, preprocess.size,
        int(config["text_cfg"].get("context_length", 77)), statistics, preprocess.interpolation, _weights(variant),
        APPLE_LICENSE if variant else "",
    )  # fmt: skip


def _weights(variant: Variant | None) -> str:
    if variant is None:
        return ""
    return variant.tag if variant.stated else f"{variant.tag}, normalization unstated"


def _remembered(config: dict[str, Any]) -> list[float]:
    """`_count`, from the user's cache where the same code counted the same architecture before.

    Building all models takes a minute; the key holds everything that decides the figures.
    """
    names = ("architectures.py", "text_repmixer.py", "reparameterize.py", "listing.py")
    code = [(_HERE / name).read_text() for name in names]
    versions = [version(name) for name in ("torch", "timm", "open_clip_torch")]
    key = hashlib.sha256(json.dumps([config, code, versions], sort_keys=True).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobileclip" / "parameters"
    try:
        found = json.loads((folder / f"{key}.json").read_text())
        if isinstance(found, list) and len(found) == _FIGURES and all(isinstance(f, float) for f in found):
            return found
    except (OSError, ValueError):
        pass
    counts = _count(config)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        storage.write_bytes(str(folder / f"{key}.json"), json.dumps(counts).encode())
    return counts


def _count(config: dict[str, Any]) -> list[float]:
    """Millions of parameters: image, text, total, then the same folded."""
    with torch.device("meta"):
        model: Any = zoo.build(config)
        folded: Any = reparameterize(model)
    return [count / 1e6 for count in (*_parts(model), *_parts(folded))]


def _parts(model: Any) -> tuple[int, int, int]:
    image, total = (sum(parameter.numel() for parameter in part.parameters()) for part in (model.visual, model))
    return image, total - image - model.logit_scale.numel(), total


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)
