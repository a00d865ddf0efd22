"""One interface over every model that a folder can be searched with: programs without torch, or weights in PyTorch."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.data.images import Geometry
from mobileclip.errors import ConfigError
from mobileclip.formats import contract, load
from mobileclip.formats.bundle.archive import SUFFIX
from mobileclip.formats.runtime import Programs

Floats = NDArray[np.float32]

_CONFIG = "open_clip_config.json"
_TEXTS_PER_CALL = 64
_WANTED = (
    "want a bundle (.zip), an export folder, the output of distill, a checkpoint folder, the root of a run, "
    "hf-hub:OWNER/NAME or NAME:TAG of published weights"
)


@dataclass(frozen=True)
class Model:
    """What embeds images and texts.

    Attributes:
        name: What a page calls it.
        identity: Digest of all that decides an image's embedding: weights, program, preprocessing.
        geometry: How images are brought to size.
        embed_dim: Width of the embeddings.
        logit_scale: Scale of the softmax over labels.
        encode_pixels: uint8 RGB [batch, 3, size, size] to unit-norm float32 [batch, embed_dim].
        encode_texts: Texts to unit-norm float32 [texts, embed_dim].
    """

    name: str
    identity: str
    geometry: Geometry
    embed_dim: int
    logit_scale: float
    encode_pixels: Callable[[NDArray[np.uint8]], Floats]
    encode_texts: Callable[[Sequence[str]], Floats]


def open_model(reference: str, *, image: str = "", text: str = "", threads: int = 0) -> Model:
    """A model by what a user types.

    Args:
        reference: A bundle, an export folder, the output of distill, a checkpoint folder, the root of a run (its
            export, else its student), `hf-hub:OWNER/NAME`, `local-dir:PATH`, or `NAME:TAG` of published weights.
        image: Precision of a bundle's image program; empty = the most exact one.
        text: Precision of its text program; the same.
        threads: Of a bundle's programs; 0 = the runtime's choice.

    Raises:
        ConfigError: It is none of these.
    """
    for folder in (reference, storage.join(reference, "export")):
        if folder.endswith(SUFFIX) or storage.exists(storage.join(folder, contract.FILE_NAME)):
            path = storage.local_dir(folder) if storage.is_s3(folder) and not folder.endswith(SUFFIX) else folder
            return _of_programs(load(path, image=image, text=text, threads=threads))
    if image or text:
        raise ConfigError(f"model: got a precision with '{reference}', want a bundle or an export folder.")
    return _of_clip(_load_clip(reference))


def _of_programs(programs: Programs) -> Model:
    terms, program = programs.contract, programs.image
    if terms is None or program is None:  # `load` gives both for a folder
        raise ConfigError(f"model: '{programs.folder}' is a single program, {_WANTED}.")
    stated = next(p for p in terms.programs if p.path == program.path.name)
    return Model(
        name=f"{terms.model} ({stated.format}, {stated.precision})",
        identity=_digest({"program": stated.sha256, "image": terms.image.model_dump(mode="json")}),
        geometry=terms.image,
        embed_dim=terms.embed_dim,
        logit_scale=terms.logit_scale,
        encode_pixels=lambda pixels: program(pixels.astype(np.float32) / 255),
        encode_texts=lambda texts: programs.encode_text(list(texts)),
    )


def _load_clip(reference: str) -> Any:
    from mobileclip.models import zoo  # torch, which a bundle does not need

    if reference.startswith(("hf-hub:", "local-dir:")):
        return zoo.load(reference)
    for place in ("distill/student", "student", ""):
        if storage.exists(storage.join(reference, *filter(None, [place]), _CONFIG)):
            return zoo.load(f"trained:{place}" if place else "trained", trained=reference)
    name, _, tag = reference.partition(":")
    if not tag or "/" in name:
        raise ConfigError(f"model: got '{reference}', {_WANTED}.")
    return zoo.load(name, pretrained=tag)


def _of_clip(clip: Any) -> Model:
    import torch

    from mobileclip.models.embed import embed_pixels, embed_texts

    @torch.inference_mode()
    def encode_pixels(pixels: NDArray[np.uint8]) -> Floats:
        return embed_pixels(clip, torch.from_numpy(pixels), batch_size=len(pixels)).numpy()

    @torch.inference_mode()
    def encode_texts(texts: Sequence[str]) -> Floats:
        return embed_texts(clip, list(texts), batch_size=_TEXTS_PER_CALL).numpy()

    return Model(
        name=str(clip.card.get("model", clip.name)),
        identity=_digest({"weights": clip.sha256, "image": dataclasses.asdict(clip.preprocess)}),
        geometry=clip.preprocess,
        embed_dim=clip.embed_dim,
        logit_scale=float(clip.logit_scale),
        encode_pixels=encode_pixels,
        encode_texts=encode_texts,
    )


def folder_of(path: str | Path) -> Path:
    """A local folder of images.

    Raises:
        ConfigError: There is none.
    """
    if storage.is_s3(path) or not Path(path).is_dir():
        raise ConfigError(f"folder: got '{path}', want a local folder of images.")
    return Path(path)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
