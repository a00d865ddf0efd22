"""Load and save CLIP and CoCa models: published names, hub names and our own checkpoint folders, one reference string.

A checkpoint folder is open_clip's own `local-dir` layout (`open_clip_config.json` with `model_cfg` **and**
`preprocess_cfg`, `open_clip_model.safetensors`) plus `model.json` (name, license, lineage) and, for Hugging Face text
towers, `text/`. The preprocessing always travels with the weights: open_clip gives local files OpenAI's mean and
standard deviation without a word, which is wrong for most MobileCLIP models.
"""

import functools
import gzip
import hashlib
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config, load_checkpoint
from safetensors import SafetensorError
from safetensors.torch import save as save_safetensors

from mobileclip import storage
from mobileclip.errors import ConfigError, DataError
from mobileclip.models.architectures import own_names, register

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "model.json"
TEXT_FOLDER = "text"

logging.getLogger("open_clip").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Preprocess:
    """How pixels become a model's input: resize to `size`, divide by 255, subtract `mean`, divide by `std`."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def as_open_clip(self) -> dict[str, Any]:
        """The dictionary open_clip stores as `preprocess_cfg`."""
        return {
            "size": self.size,
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": "squash",
        }


@dataclass
class Clip:
    """A model with all that is needed to feed it.

    Attributes:
        model: open_clip `CLIP`, `CustomTextCLIP` or `CoCa`, in eval mode, float32, CPU.
        preprocess: Input size, mean, std, interpolation.
        tokenizer: Texts to int64 [batch, context_length].
        config: open_clip `model_cfg`.
        name: Reference it was loaded by.
        sha256: Digest of the weights.
        license: License of the weights.
        folder: Local folder it came from; empty for published names.
        card: `model.json` of the folder.
    """

    model: torch.nn.Module
    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    config: dict[str, Any]
    name: str
    sha256: str
    license: str
    folder: str = ""
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return int(self.config["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """The model's own logit scale (1 / temperature)."""
        scale: Any = self.model.logit_scale
        return float(scale.exp().detach().reshape(-1)[0])

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized pixels float32 [batch, 3, size, size] to unit-norm embeddings [batch, dim]."""
        images = images.contiguous(memory_format=torch.channels_last)  # a third faster for convolutions on CPU
        model: Any = self.model
        return model.encode_image(images, normalize=True).float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit-norm embeddings [len(texts), dim]."""
        model: Any = self.model
        tokens = self.tokenizer(list(texts))
        if "hf_model_name" in self.config["text_cfg"]:
            # These towers mask their padding, so columns that are padding in every row change nothing but the cost.
            used = (tokens != model.text.config.pad_token_id).sum(dim=1)
            tokens = tokens[:, : max(1, int(used.max()))]
        return model.encode_text(tokens, normalize=True).float()


def create(model: str, *, text_folder: Path | None = None) -> Clip:
    """A model with fresh weights by architecture name.

    Args:
        model: An open_clip name or one of the project's own.
        text_folder: Local Hugging Face folder for architectures whose text tower is one (`hf_model_name: text`).

    Raises:
        ConfigError: Unknown name.
    """
    config = architecture(model)
    built = _build(config, text_folder)
    preprocess = default_preprocess(model, config)
    tokenizer = _tokenizer(config, text_folder)
    return Clip(built, preprocess, tokenizer, config, model, "", "Apache-2.0", str(text_folder or ""))


def load(model: str, *, pretrained: str = "", trained: str = "") -> Clip:
    """A model with its weights.

    Args:
        model: `trained:NAME` (folder NAME below `trained`), `trained` (the folder `trained` itself), `local-dir:PATH`,
            `hf-hub:...`, or an open_clip name with `pretrained`.
        pretrained: open_clip weights tag.
        trained: Folder or URI that an earlier stage wrote.

    Raises:
        ConfigError: The name or tag is unknown, or `trained:` is used without that input.
        DataError: The folder holds no checkpoint, or its weights do not fit.
    """
    if model == "trained" or model.startswith("trained:"):
        if not trained:
            raise ConfigError(f"model: got '{model}', but there is no input folder with trained models.")
        return _load_folder(storage.join(trained, model.partition(":")[2]), model)
    if model.startswith("local-dir:"):
        return _load_folder(model.removeprefix("local-dir:"), model)
    register()
    if not model.startswith("hf-hub:") and pretrained not in open_clip.list_pretrained_tags_by_model(model):
        known = open_clip.list_pretrained_tags_by_model(model)
        raise ConfigError(f"pretrained: got '{pretrained}' for model '{model}', want one of {known}.")
    return _load_published(model, pretrained)


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
    config = {"model_cfg": clip.config, "preprocess_cfg": clip.preprocess.as_open_clip()}
    if "hf_model_name" in clip.config["text_cfg"]:
        for path in sorted(_text_folder(clip).iterdir()):
            if path.suffix in {".json", ".txt"}:  # configuration and vocabulary; the weights are in the checkpoint
                storage.write_bytes(storage.join(folder, TEXT_FOLDER, path.name), path.read_bytes())
    storage.write_bytes(storage.join(folder, WEIGHTS_FILE), data)
    storage.write_bytes(storage.join(folder, CARD_FILE), _json({**card, "license": license, "sha256": sha256}))
    storage.write_bytes(storage.join(folder, CONFIG_FILE), _json(config))
    return sha256


def image_tensor(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """uint8 RGB [batch, 3, size, size] to a model's normalized float32 input."""
    mean = torch.tensor(preprocess.mean).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def architecture(model: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of an architecture name.

    Raises:
        ConfigError: Unknown name.
    """
    register()
    config = get_model_config(model)
    if config is None:
        raise ConfigError(
            f"model: unknown architecture '{model}', want an open_clip name or one of {', '.join(own_names())}."
        )
    return deepcopy(config)


def default_preprocess(model: str, config: dict[str, Any]) -> Preprocess:
    """Preprocessing of a fresh model: MobileCLIP's own models take plain 0-1 pixels, the others OpenAI's statistics."""
    size = config["vision_cfg"]["image_size"]
    size = int(size if isinstance(size, int) else size[0])
    if config["vision_cfg"].get("timm_model_name") == "tf_efficientnet_lite0":
        return Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    if model in own_names() or (model.startswith("MobileCLIP") and not model.endswith(("S3", "S4", "L-14"))):
        return Preprocess(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    interpolation = "bilinear" if model.startswith("MobileCLIP") and model.endswith(("S3", "S4")) else "bicubic"
    return Preprocess(size, tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD), interpolation)


def _build(config: dict[str, Any], text_folder: Path | None) -> torch.nn.Module:
    register()
    cfg = deepcopy(config)
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
        if text_folder is not None:
            cfg["text_cfg"]["hf_model_name"] = str(text_folder)
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    if "multimodal_cfg" in cfg:
        built = open_clip.CoCa(**cfg)
        # open_clip 3.3 leaves this one tensor as uninitialized memory; the scale is the one its own init would use.
        torch.nn.init.normal_(built.text_decoder.text_projection, std=built.text_decoder.width**-0.5)
    else:
        built = open_clip.CustomTextCLIP(**cfg) if custom else open_clip.CLIP(**cfg)
    return built.eval()  # type: ignore[no-any-return]


def _tokenizer(config: dict[str, Any], text_folder: Path | None) -> Callable[[Sequence[str]], torch.Tensor]:
    text = config["text_cfg"]
    length = int(text.get("context_length", 77))
    if "hf_tokenizer_name" in text:
        source = str(text_folder) if text_folder is not None else text["hf_tokenizer_name"]
        return open_clip.tokenizer.HFTokenizer(source, context_length=length, **text.get("tokenizer_kwargs", {}))  # type: ignore[no-any-return]
    if "multimodal_cfg" in config:
        length = int(config["multimodal_cfg"].get("context_length", length))
    options = dict(text.get("tokenizer_kwargs", {}))
    merges = options.pop("num_merges", 0)
    if merges:
        options["bpe_path"] = _short_merges(merges)
    return open_clip.SimpleTokenizer(context_length=length, **options)


@functools.lru_cache
def _short_merges(count: int) -> str:
    """CLIP's byte-pair merges cut to the `count` most frequent: a vocabulary of 512 + count + 2 tokens.

    A captioner of a few million parameters would spend nine tenths of its time on 49,408 words it hardly ever sees.
    """
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as handle:
        lines = list(itertools.islice(handle, count + 1))  # the first line is a header
    path = Path(tempfile.mkdtemp(prefix="mobileclip-bpe-")) / "merges.txt.gz"
    path.write_bytes(gzip.compress("".join(lines).rstrip("\n").encode(), mtime=0))
    return str(path)


def _load_folder(uri: str, name: str) -> Clip:
    try:
        folder = storage.local_dir(uri)
        raw = json.loads((folder / CONFIG_FILE).read_text())
        card = json.loads((folder / CARD_FILE).read_text()) if (folder / CARD_FILE).is_file() else {}
    except (DataError, FileNotFoundError):
        raise DataError(
            f"model: no checkpoint at '{uri}', want a folder with {CONFIG_FILE} and {WEIGHTS_FILE}."
        ) from None
    except ValueError:
        raise DataError(f"model: '{uri}/{CONFIG_FILE}' is not JSON.") from None
    if "preprocess_cfg" not in raw:
        raise DataError(f"model: '{uri}/{CONFIG_FILE}' names no preprocess_cfg; its normalization would be a guess.")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise DataError(f"model: no {WEIGHTS_FILE} in '{uri}'.")
    text_folder = folder / TEXT_FOLDER if (folder / TEXT_FOLDER).is_dir() else None
    try:
        config, pre = raw["model_cfg"], raw["preprocess_cfg"]
        size = pre["size"] if isinstance(pre["size"], int) else pre["size"][0]
        preprocess = Preprocess(int(size), tuple(pre["mean"]), tuple(pre["std"]), pre["interpolation"])
    except KeyError as error:
        raise DataError(f"model: '{uri}/{CONFIG_FILE}' lacks {error}.") from None
    model = _build(config, text_folder)
    try:
        load_checkpoint(model, str(weights), strict=True)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise DataError(f"model: '{weights.name}' does not fit the architecture in '{uri}': {_first(error)}.") from None
    return Clip(
        model.eval(), preprocess, _tokenizer(config, text_folder), config, name,
        storage.digest_file(weights), str(card.get("license", "unknown")), str(folder), card,
    )  # fmt: skip


def _load_published(model: str, pretrained: str) -> Clip:
    built = open_clip.create_model(model, pretrained=pretrained or None, require_pretrained=True).eval()
    pre = open_clip.get_model_preprocess_cfg(built)
    size = pre["size"] if isinstance(pre["size"], int) else pre["size"][0]
    preprocess = Preprocess(int(size), tuple(pre["mean"]), tuple(pre["std"]), pre["interpolation"])
    config = deepcopy(get_model_config(model))
    digest = hashlib.sha256()
    for key, value in sorted(built.state_dict().items()):
        digest.update(key.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    apple = pretrained.startswith(("datacompdr", "dfndr", "dfn"))
    name = f"{model}/{pretrained}" if pretrained else model
    return Clip(
        built, preprocess, open_clip.get_tokenizer(model), config, name, digest.hexdigest(),
        "apple-amlr" if apple else "unknown",
    )  # fmt: skip


def _text_folder(clip: Clip) -> Path:
    folder = Path(clip.folder)
    return folder / TEXT_FOLDER if (folder / TEXT_FOLDER).is_dir() else folder


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)].rstrip(".")[:160] if lines else type(error).__name__


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
