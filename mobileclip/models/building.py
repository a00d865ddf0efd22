"""From a name to an architecture, and from an architecture to modules: model, tokenizer, preprocessing.

Three kinds of names: published MobileCLIP variants (`published.py`), every open_clip architecture and the project's
own (`configs/`), and custom students `timm:IMAGE[@SIZE]+TEXT`: any timm image tower with the text tower of any of the
others.
"""

import contextlib
import functools
import gzip
import itertools
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers.dynamic_module_utils
from open_clip.factory import get_model_config

from mobileclip.data.preprocess import Preprocess
from mobileclip.errors import ConfigError, DataError
from mobileclip.models.architectures import fit_size, own_names, register
from mobileclip.models.pointwise import without_stride
from mobileclip.models.published import OPENAI, PLAIN, VARIANTS
from mobileclip.models.text_repmixer import clip_with_text_repmixer
from mobileclip.models.trunk import TrunkTower
from mobileclip.models.trusted_config import check_text_folder

# transformers loads torchao where it is installed, and torchao's way of registering types makes torch warn every user.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
# Where a repository brings code of its own, transformers asks at the terminal whether to run it, and open_clip leaves
# that question open: with no time to answer it is refused.
transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

_CUSTOM = re.compile(r"^timm:(?P<image>[^@+]+)(?:@(?P<size>\d+))?\+(?P<text>.+)$")


def architecture(model: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of an architecture name.

    Args:
        model: A published variant, an open_clip name, one of the project's own, or `timm:IMAGE[@SIZE]+TEXT`.

    Raises:
        ConfigError: Unknown name.
    """
    register()
    if model.startswith("timm:"):
        return _custom(model)
    known = VARIANTS[model].architecture if model in VARIANTS else model
    config = get_model_config(known) if open_clip.factory.parse_model_name(known)[0] is None else None
    if config is None:
        raise ConfigError(
            f"model: unknown architecture '{model}', want an open_clip name, timm:IMAGE+TEXT or one of "
            f"{', '.join(dict.fromkeys([*VARIANTS, *own_names()]))}."
        )
    return deepcopy(config)


def default_preprocess(model: str, config: dict[str, Any]) -> Preprocess:
    """Preprocessing of a fresh model.

    MobileCLIP's models have that of their published weights, the project's own take plain 0-1 pixels, custom students
    what timm says of their image tower, all others OpenAI's statistics. Only MobileCLIP's crop, as they were published;
    all others squash.
    """
    size = config["vision_cfg"]["image_size"]
    size = int(size if isinstance(size, int) else size[0])
    if config["vision_cfg"].get("timm_model_name") == "tf_efficientnet_lite0":
        return Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    if model in VARIANTS:
        mean, std = VARIANTS[model].statistics
        return Preprocess(size, mean, std, VARIANTS[model].interpolation, VARIANTS[model].resize)
    if model in own_names():
        return Preprocess(size, *PLAIN, "bilinear")
    if model.startswith("timm:"):
        found = _timm_config(config["vision_cfg"]["timm_model_name"])
        return Preprocess(size, found.mean, found.std, found.interpolation)
    return Preprocess(size, *OPENAI, "bicubic")


def build(config: dict[str, Any], text_folder: Path | None = None) -> torch.nn.Module:
    """A model with fresh weights in eval mode; nothing is downloaded.

    Args:
        config: open_clip's `model_cfg`.
        text_folder: Local Hugging Face folder, where the text tower is one.

    Raises:
        DataError: The text tower is one of the Hugging Face hub, whose files cannot be had.
    """
    register()
    cfg = deepcopy(config)
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
        cfg["text_cfg"]["hf_model_name"] = _text_source(cfg["text_cfg"]["hf_model_name"], text_folder)
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    if "repmixer" in cfg["text_cfg"]:
        return without_stride(clip_with_text_repmixer(cfg)).eval()
    if "multimodal_cfg" in cfg:
        with hub_files(cfg["text_cfg"]):
            built = open_clip.CoCa(**cfg)
        # open_clip 3.3 leaves this one tensor as uninitialized memory; the scale is the one its own init would use.
        torch.nn.init.normal_(built.text_decoder.text_projection, std=built.text_decoder.width**-0.5)
        if "timm_model_name" in cfg["vision_cfg"]:  # open_clip's own tower over a timm trunk gives no tokens
            built.visual = TrunkTower(
                built.visual.trunk, image_size=cfg["vision_cfg"]["image_size"], width=cfg["multimodal_cfg"]["width"],
                embed_dim=cfg["embed_dim"],
            )  # fmt: skip
    else:
        with hub_files(cfg["text_cfg"]):
            built = open_clip.CustomTextCLIP(**cfg) if custom else open_clip.CLIP(**cfg)
    fit_size(built.visual, cfg["vision_cfg"].get("image_size"))
    return without_stride(built).eval()


@contextlib.contextmanager
def hub_files(text: dict[str, Any]) -> Iterator[None]:
    """One sentence where transformers finds the files of a text tower or its vocabulary neither off-line nor on-line.

    Args:
        text: open_clip's `text_cfg`.

    Raises:
        DataError: They cannot be had.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        name = text.get("hf_model_name") or text.get("hf_tokenizer_name")
        raise DataError(f"model: the Hugging Face files '{name}' bring code, which is never run.") from None
    except OSError as error:
        name = text.get("hf_model_name") or text.get("hf_tokenizer_name")
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:160]
        raise DataError(
            f"model: the text tower needs the Hugging Face files '{name}', which cannot be loaded: {reason}; "
            "want them in the hub's cache or in a local folder."
        ) from None


def _text_source(name: str, folder: Path | None) -> str:
    """Where transformers reads a text tower's files: a folder that is checked first, else the hub, never by chance.

    Raises:
        DataError: The folder names code, `name` is a hub's name and a folder here, which transformers would prefer, or
            the files lie beside weights of which no folder was given.
    """
    if folder is not None:
        check_text_folder(folder)
        return str(folder)
    if name == "text":
        raise DataError(
            "model: the text tower needs the Hugging Face files 'text', which cannot be loaded: they lie beside a "
            "checkpoint's weights, and no folder was given."
        )
    if Path(name).exists():
        raise DataError(
            f"model: the text tower needs the Hugging Face files '{name}', and a folder here has that name."
        )
    return name


def build_tokenizer(config: dict[str, Any], text_folder: Path | None = None) -> Callable[[Sequence[str]], torch.Tensor]:
    """Texts to token ids int64 [batch, context_length], as the text tower of `config` wants them."""
    text = config["text_cfg"]
    length = int(text.get("context_length", 77))
    if "hf_tokenizer_name" in text:
        source = _text_source(text["hf_tokenizer_name"], text_folder)
        options = {**text.get("tokenizer_kwargs", {}), "trust_remote_code": False}
        with hub_files(text):
            return open_clip.tokenizer.HFTokenizer(source, context_length=length, **options)  # type: ignore[no-any-return]
    if "multimodal_cfg" in config:
        length = int(config["multimodal_cfg"].get("context_length", length))
    options = dict(text.get("tokenizer_kwargs", {}))
    merges = options.pop("num_merges", 0)
    if not merges:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    with tempfile.TemporaryDirectory(prefix="mobileclip-bpe-") as folder:
        path = Path(folder) / "merges.txt.gz"
        path.write_bytes(_short_merges(merges))
        return open_clip.SimpleTokenizer(bpe_path=str(path), context_length=length, **options)


def _custom(model: str) -> dict[str, Any]:
    """The architecture of `timm:IMAGE[@SIZE]+TEXT`: timm's own head becomes the projection."""
    parts = _CUSTOM.match(model)
    if parts is None:
        raise ConfigError(f"model: got '{model}', want timm:IMAGE+TEXT or timm:IMAGE@SIZE+TEXT.")
    image, text = parts["image"], architecture(parts["text"])
    if not timm.is_model(image.split(".")[0]):
        raise ConfigError(f"model: timm has no image tower '{image}', want a name of timm.list_models().")
    text["text_cfg"].pop("output_tokens", None)  # captioners' text towers give tokens, too; only a decoder wants them
    size = int(parts["size"] or _timm_config(image).size)
    vision = {
        "timm_model_name": image, "timm_model_pretrained": False, "timm_pool": _timm_pool(image), "timm_proj": None,
        "image_size": size,
    }  # fmt: skip
    kept: dict[str, Any] = {key: text[key] for key in ("embed_dim", "text_cfg", "quick_gelu") if key in text}
    return {**kept, "vision_cfg": vision, "custom_text": True}


@functools.lru_cache
def _timm_pool(image: str) -> str:
    """The pooling a tower has by itself: `avg` of most convolutional ones, `token`, `map`, ... of transformers."""
    with torch.device("meta"):
        tower: Any = timm.create_model(image, num_classes=1)
    pool = getattr(tower, "global_pool", None) or getattr(getattr(tower, "head", None), "global_pool", None)
    return pool if isinstance(pool, str) else str(getattr(pool, "pool_type", "") or "avg")


@functools.lru_cache
def _timm_config(image: str) -> Preprocess:
    """What timm says of a tower: input size, mean, std and interpolation of its published weights."""
    found = timm.get_pretrained_cfg(image)  # none for the own towers
    size = found.input_size[-1] if found is not None else 224
    mean, std = (found.mean, found.std) if found is not None else PLAIN
    return Preprocess(int(size), tuple(mean), tuple(std), found.interpolation if found is not None else "bicubic")


@functools.lru_cache
def _short_merges(count: int) -> bytes:
    """CLIP's byte-pair merges, gzipped, cut to the `count` most frequent: a vocabulary of 512 + count + 2 tokens.

    A captioner of a few million parameters would spend nine tenths of its time on 49,408 words it hardly ever sees.
    """
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as handle:
        lines = list(itertools.islice(handle, count + 1))  # the first line is a header
    return gzip.compress("".join(lines).rstrip("\n").encode(), mtime=0)
