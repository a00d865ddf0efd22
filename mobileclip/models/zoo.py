"""Load and save CLIP and CoCa models: published names, hub names and our own checkpoint folders, one reference string.

A checkpoint folder is open_clip's own `local-dir` layout (`open_clip_config.json` with `model_cfg` **and**
`preprocess_cfg`, `open_clip_model.safetensors`) plus `model.json` (name, license, lineage) and, for Hugging Face text
towers, `text/`. The preprocessing always travels with the weights: open_clip gives local files OpenAI's mean and
standard deviation without a word, which is wrong for most MobileCLIP models.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config
from safetensors.torch import save as save_safetensors

from mobileclip import storage
from mobileclip.data import images
from mobileclip.data.preprocess import Preprocess, image_tensor
from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.models import hub
from mobileclip.models.architectures import own_names, register
from mobileclip.models.building import architecture, build, build_tokenizer, default_preprocess, hub_files
from mobileclip.models.checkpoints import DAMAGE, SUFFIXES, first_line, fit, read, refuse_shortage
from mobileclip.models.clip import Clip
from mobileclip.models.published import (
    APPLE_LICENSE,
    OPEN_CLIP_RESIZE,
    VARIANTS,
    known_of_file,
    license_of,
    statistics_of_file,
    variant_of_hub,
)
from mobileclip.models.trusted_config import checked_config, fewest_parameters

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "TEXT_FOLDER",
    "WEIGHTS_FILE",
    "Clip",
    "Preprocess",
    "architecture",
    "build",
    "create",
    "default_preprocess",
    "has_weights",
    "hub_repository",
    "image_tensor",
    "known_names",
    "load",
    "origin",
    "save",
    "start",
    "weight_tags",
]

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "model.json"
TEXT_FOLDER = "text"

logging.getLogger("open_clip").setLevel(logging.ERROR)


def create(model: str, *, text_folder: Path | None = None) -> Clip:
    """A model with fresh weights by architecture name.

    Args:
        model: A published variant, an open_clip name, one of the project's own, or a custom student
            `timm:IMAGE[@SIZE]+TEXT` (any timm image tower with the text tower of another architecture).
        text_folder: Local Hugging Face folder for architectures whose text tower is one (`hf_model_name: text`).

    Raises:
        ConfigError: Unknown name, or timm cannot build that image tower at that size.
        DataError: The text tower is one of the Hugging Face hub, whose files cannot be had.
    """
    config = architecture(model)
    try:
        built = build(config, text_folder)
    except (RuntimeError, TypeError, AssertionError, MemoryError) as error:
        refuse_shortage(error, model)
        if not model.startswith("timm:"):
            raise
        raise ConfigError(f"model: '{model}' cannot be built: {first_line(error)}.") from None  # type: ignore[arg-type]
    preprocess = default_preprocess(model, config)
    tokenizer = build_tokenizer(config, text_folder)
    return Clip(built, preprocess, tokenizer, config, model, "", "Apache-2.0", str(text_folder or ""))


def has_weights(model: str, pretrained: str) -> bool:
    """Whether a reference names weights, rather than an architecture to start from scratch."""
    return bool(pretrained) or model.startswith(("hf-hub:", "local-dir:"))


def origin(model: str, pretrained: str) -> dict[str, Any]:
    """How a card names what a training started from: the same on every machine, so local paths are left out."""
    return {
        "model": "local-dir" if model.startswith("local-dir:") else model,
        "pretrained": "file" if pretrained.endswith(SUFFIXES) else pretrained,
    }


def start(model: str, *, pretrained: str = "", text_folder: Path | None = None) -> Clip:
    """What a training starts from: the weights a reference names, or fresh ones.

    Args:
        model: Architecture as for `create`, or weights as for `load`.
        pretrained: As for `load`; empty = fresh weights, for an architecture.
        text_folder: As for `create`.
    """
    if has_weights(model, pretrained):
        return load(model, pretrained=pretrained)
    return create(model, text_folder=text_folder)


def load(model: str, *, pretrained: str = "", trained: str = "") -> Clip:
    """A model with its weights.

    Args:
        model: `trained:NAME` (folder NAME below `trained`), `trained` (the folder `trained` itself), `local-dir:PATH`,
            `hf-hub:OWNER/NAME`, or a published variant's or open_clip's name with `pretrained`.
        pretrained: Tag of published weights, or a weights file (path or URI) of an architecture whose normalization
            and activation are known.
        trained: Folder or URI that an earlier stage wrote.

    Raises:
        ConfigError: The name or tag is unknown, or `trained:` is used without that input.
        DataError: There is no checkpoint, it does not fit, or nothing says which normalization or activation it wants.
    """
    if model == "trained" or model.startswith("trained:"):
        if not trained:
            raise ConfigError(f"model: got '{model}', but there is no input folder with trained models.")
        return _load_folder(storage.join(trained, model.partition(":")[2]), model)
    if model.startswith("local-dir:"):
        return _load_folder(model.removeprefix("local-dir:"), model)
    if model.startswith("hf-hub:"):
        return _load_hub(model.removeprefix("hf-hub:"))
    own = VARIANTS.get(model)
    name = own.architecture if own else model
    tags = _open_clip_tags(model)
    if pretrained in tags:
        return _load_published(name, pretrained, f"{model}/{pretrained}", license_of(pretrained))
    if own and pretrained == own.tag:
        return _load_hub(own.hub)
    if pretrained.endswith(SUFFIXES):
        return _load_file(model, storage.local_copy(pretrained), license_=APPLE_LICENSE if own else "unknown")
    known = weight_tags(model)
    raise ConfigError(f"pretrained: got '{pretrained}' for model '{model}', want one of {known} or a weights file.")


def weight_tags(model: str) -> list[str]:
    """Tags of the published weights of an architecture name."""
    own = VARIANTS.get(model)
    return list(dict.fromkeys([*_open_clip_tags(model), *([own.tag] if own else [])]))


def known_names() -> list[str]:
    """Architectures that can be named without a prefix."""
    register()
    return list(dict.fromkeys([*VARIANTS, *own_names(), *open_clip.list_models()]))


def hub_repository(model: str, pretrained: str) -> str:
    """The hub's repository that a reference's weights come from; empty where they lie elsewhere."""
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    own = VARIANTS.get(model)
    if pretrained in _open_clip_tags(model):
        found = open_clip.get_pretrained_cfg(own.architecture if own else model, pretrained)
        return str((found or {}).get("hf_hub") or "").strip("/")
    return own.hub if own and pretrained == own.tag else ""


def _open_clip_tags(model: str) -> list[str]:
    register()
    own = VARIANTS.get(model)
    tags = list(open_clip.list_pretrained_tags_by_model(own.architecture if own else model))
    # Of a shared architecture the tags of the other variant are no weights of this one.
    return [tag for tag in tags if tag == own.tag] if own and own.architecture != model else tags


def save(
    folder: str,
    clip: Clip,
    *,
    license: str,
    card: dict[str, Any],
) -> str:
    """Write a checkpoint folder; returns the digest of the weights.

    Args:
        folder: Local folder or URI.
        clip: What to save (its `model`'s current weights).
        license: License of the weights.
        card: Anything about the origin; must not hold times or machine paths, so that equal runs give equal bytes.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in sorted(clip.model.state_dict().items())}
    data = save_safetensors(weights)
    sha256 = hashlib.sha256(data).hexdigest()
    files = {CONFIG_FILE: _json({"model_cfg": clip.config, "preprocess_cfg": clip.preprocess.as_open_clip()})}
    if "hf_model_name" in clip.config["text_cfg"] and clip.folder:  # without one the hub's cache has the files
        for path in sorted(_text_folder(clip).iterdir()):
            if path.suffix in {".json", ".txt"}:  # configuration and vocabulary; the weights are in the checkpoint
                files[f"{TEXT_FOLDER}/{path.name}"] = path.read_bytes()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    written = {**card, "license": license, "sha256": sha256, "files": digests}
    for name, content in {WEIGHTS_FILE: data, CARD_FILE: _json(written), **dict(reversed(files.items()))}.items():
        storage.write_bytes(storage.join(folder, name), content)
    return sha256


def _load_folder(uri: str, name: str) -> Clip:
    try:
        folder: Path | None = storage.local_dir(uri)
    except DataError:
        folder = None
    if folder is None or not (folder / CONFIG_FILE).is_file():
        raise DataError(f"model: no checkpoint at '{uri}', want a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.")
    raw = _read_json(folder / CONFIG_FILE, f"{uri}/{CONFIG_FILE}")
    card = _read_json(folder / CARD_FILE, f"{uri}/{CARD_FILE}") if (folder / CARD_FILE).is_file() else {}
    config = _checked(raw, f"{uri}/{CONFIG_FILE}")
    preprocess = _stated_preprocess(raw, f"{uri}/{CONFIG_FILE}")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise DataError(f"model: no {WEIGHTS_FILE} in '{uri}'.")
    least, size = fewest_parameters(config), weights.stat().st_size
    if least > size:  # found out before it is built
        raise DataError(
            f"model: '{weights.name}' does not fit '{uri}/{CONFIG_FILE}': {size} bytes, want {least} or more."
        )
    text_folder = folder / TEXT_FOLDER if (folder / TEXT_FOLDER).is_dir() else None
    model = _built(config, uri, text_folder)
    fit(model, weights, name=f"in '{uri}'")
    digest = _promised(folder, uri, card)  # what is plainly wrong was named by then; this finds what is not
    return Clip(
        model.eval(), preprocess, build_tokenizer(config, text_folder), config, name,
        digest, str(card.get("license", "unknown")), str(folder), card,
    )  # fmt: skip


def _promised(folder: Path, uri: str, card: dict[str, Any]) -> str:
    """Digest of the weights, which are those that the card vouches for, and so are the files beside them.

    Raises:
        IntegrityError: One of them is another one.
    """
    promised = {WEIGHTS_FILE: card.get("sha256"), **(card.get("files") or {})}
    digests = {name: storage.digest_file(folder / name) for name in promised if (folder / name).is_file()}
    for name, wanted in promised.items():
        if wanted is not None and digests.get(name) != wanted:
            raise IntegrityError(
                f"model: '{name}' in '{uri}' has sha256 {digests.get(name, 'of no file')}, {CARD_FILE} promises "
                f"{wanted}; it is damaged or was changed."
            )
    return digests[WEIGHTS_FILE]


def _built(config: dict[str, Any], name: str, text_folder: Path | None) -> torch.nn.Module:
    """A checkpoint's model without its weights; whether its numbers go together is for open_clip to say."""
    try:
        return build(config, text_folder)
    except (*DAMAGE, AssertionError, ZeroDivisionError) as error:
        refuse_shortage(error, name)
        raise DataError(f"model: the architecture in '{name}' cannot be built: {first_line(error)}.") from None


def _read_json(path: Path, name: str) -> dict[str, Any]:
    """An object of a checkpoint's file; `name` is the file as the sentence has it."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f"model: '{name}' is not JSON.") from None
    if not isinstance(found, dict):
        raise DataError(f"model: '{name}' holds {type(found).__name__}, want a mapping.")
    return found


def _checked(raw: dict[str, Any], file: str) -> dict[str, Any]:
    """The architecture of a configuration that came with weights: shapes and choices alone."""
    if "model_cfg" not in raw:
        raise DataError(f"model: '{file}' lacks 'model_cfg'.")
    return checked_config(raw["model_cfg"], where=file)


def _stated_preprocess(raw: dict[str, Any], file: str) -> Preprocess:
    """What a configuration says of the pixels; what it leaves out is refused, not guessed.

    But for the resize mode, which this project has always written and open_clip takes as `shortest` where it is left
    out: the same folder gives the same pixels in both.
    """
    if "preprocess_cfg" not in raw:
        raise DataError(f"model: '{file}' names no preprocess_cfg; its normalization would be a guess.")
    try:
        pre, model = raw["preprocess_cfg"], raw["model_cfg"]
        size = pre.get("size") or model["vision_cfg"]["image_size"]
        size = size if isinstance(size, int) else size[0]
        found = _preprocess(int(size), pre, file)
        model["text_cfg"]  # asked for later
    except KeyError as error:
        raise DataError(f"model: '{file}' lacks {error}.") from None
    return found


def _preprocess(size: int, said: Mapping[str, Any], name: str) -> Preprocess:
    """open_clip's `preprocess_cfg` at an input size.

    Raises:
        DataError: It asks for what open_clip does not know either.
    """
    mean, std = tuple(said["mean"]), tuple(said["std"])
    # Of open_clip's "random" only training makes use; its evaluation is bicubic.
    interpolation = {"random": "bicubic"}.get(said["interpolation"], said["interpolation"])
    resize, fill = said.get("resize_mode") or OPEN_CLIP_RESIZE, said.get("fill_color") or 0
    for key, got, known in (
        ("interpolation", interpolation, images.INTERPOLATIONS),
        ("resize_mode", resize, images.RESIZE_MODES),
    ):
        if got not in known:
            raise DataError(f"model: '{name}': preprocess_cfg.{key}: got {got!r}, want one of {', '.join(known)}.")
    if not isinstance(fill, int) or not 0 <= fill <= 255:
        raise DataError(f"model: '{name}': preprocess_cfg.fill_color: got {fill!r}, want an integer from 0 to 255.")
    return Preprocess(size, mean, std, interpolation, resize, fill)


def _load_file(model: str, path: Path, *, license_: str) -> Clip:
    """A lone weights file of a known architecture."""
    config = architecture(model)
    statistics, interpolation, resize, quick_gelu = known_of_file(model, path.name)
    if quick_gelu != config.get("quick_gelu", False):
        config["quick_gelu"] = quick_gelu
    read(path)  # a damaged file costs no building
    built = build(config)
    fit(built, path, name=f"'{model}'")
    size = default_preprocess(model, config).size
    preprocess = Preprocess(size, *statistics, interpolation, resize)
    digest = storage.digest_file(path)
    return Clip(built, preprocess, build_tokenizer(config), config, model, digest, license_)


def _load_hub(repository: str) -> Clip:
    """A hub repository: in open_clip's layout, or one of Apple's with a lone weights file."""
    variant, license_ = variant_of_hub(repository), hub.license_of_card(repository)
    config = hub.file(repository, CONFIG_FILE)
    if config is None and not variant:
        raise DataError(f"model: no {CONFIG_FILE} in 'hf-hub:{repository}', and it is no publisher's variant.")
    if config is None:
        known_of_file(variant, f"hf-hub:{repository}")  # before a gigabyte is fetched
        weights = hub.weights(repository)
        if weights is None:
            raise DataError(f"model: no weights in 'hf-hub:{repository}'.")
        clip = _load_file(variant, weights, license_=license_)
        clip.name = f"hf-hub:{repository}"
        return clip
    raw = _read_json(config, f"hf-hub:{repository}/{CONFIG_FILE}")
    _checked(raw, f"hf-hub:{repository}/{CONFIG_FILE}")  # before open_clip reads the same file
    clip = _load_published(f"hf-hub:{repository}", "", f"hf-hub:{repository}", license_)
    known = statistics_of_file(variant) if variant else None
    if known is None:
        clip.preprocess = _stated_preprocess(raw, f"hf-hub:{repository}/{CONFIG_FILE}")
    else:
        clip.preprocess = Preprocess(clip.preprocess.size, *known[0], *known[1:])
    return clip


def _load_published(model: str, pretrained: str, name: str, license_: str) -> Clip:
    """Weights that open_clip finds by itself."""
    config, options = deepcopy(get_model_config(model)), {}
    if pretrained:
        # With weights trained with QuickGELU and a plain architecture open_clip only warns: wrong embeddings.
        known = open_clip.get_pretrained_cfg(model, pretrained)
        config["quick_gelu"] = options["quick_gelu"] = bool(known.get("quick_gelu", False))
    try:
        built = open_clip.create_model(model, pretrained=pretrained or None, require_pretrained=True, **options).eval()
    except DAMAGE as error:
        refuse_shortage(error, name)
        raise DataError(f"model: the weights of '{name}' cannot be loaded: {first_line(error)}.") from None
    pre = open_clip.get_model_preprocess_cfg(built)
    size = pre["size"] if isinstance(pre["size"], int) else pre["size"][0]
    preprocess = _preprocess(int(size), pre, name)
    digest = hashlib.sha256()
    for key, value in sorted(built.state_dict().items()):
        digest.update(key.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    with hub_files(config["text_cfg"]):
        tokenizer = open_clip.get_tokenizer(model)
    return Clip(built, preprocess, tokenizer, config, name, digest.hexdigest(), license_)


def _text_folder(clip: Clip) -> Path:
    folder = Path(clip.folder)
    return folder / TEXT_FOLDER if (folder / TEXT_FOLDER).is_dir() else folder


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
