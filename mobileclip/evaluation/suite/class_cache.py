"""Class embeddings kept by digest: the 80,000 prompts that ImageNet, V2 and Sketch share are encoded once per model."""

import hashlib
import json
from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.numpy import load, save

from mobileclip import storage
from mobileclip.evaluation import zero_shot
from mobileclip.evaluation.features import Features, text_features
from mobileclip.lineage.code import module_digest
from mobileclip.models.zoo import Clip

_NAME = "model"
_TENSOR = "class_embeddings"


def class_embeddings(
    clip: Clip, classes: Sequence[str], templates: Sequence[str], *, folder: str, batch_size: int
) -> Features:
    """`zero_shot.class_embeddings`, taken from `folder` where the same weights met the same prompts before.

    Args:
        clip: The model.
        classes: Class names.
        templates: Prompts with `{}` for the class.
        folder: Folder or URI; a file in it is named by weights, code, classes and prompts.
        batch_size: Texts per forward pass.

    Returns:
        Unit-norm [classes, dim].
    """
    uri = storage.join(folder, f"{_key(clip, classes, templates)}.safetensors")
    if clip.sha256 and storage.exists(uri):
        found = _read(uri)
        if found is not None and found.shape == (len(classes), clip.embed_dim):
            return found
    made = zero_shot.class_embeddings(
        lambda texts: text_features(_NAME, clip, list(texts), batch_size=batch_size), classes, templates
    )
    if clip.sha256:  # fresh weights have no digest
        storage.write_bytes(uri, save({_TENSOR: made}))
    return made


def _key(clip: Clip, classes: Sequence[str], templates: Sequence[str]) -> str:
    # The library's code is part of it: another tokenizer or text tower gives other embeddings of the same weights.
    facts = {
        "weights": clip.sha256,
        "code": module_digest(__name__),
        "classes": list(classes),
        "templates": list(templates),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(uri: str) -> Features | None:
    """The embeddings; none where the file is damaged, and they are made again."""
    try:
        return load(storage.read_bytes(uri)).get(_TENSOR)
    except SafetensorError:
        return None
