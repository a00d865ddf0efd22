"""What a configuration that comes with weights may say: shapes and choices, never code, paths or switches of loaders.

open_clip hands parts of a checkpoint's configuration on as keyword arguments: to timm, to transformers' automatic
classes, to functions that open files. So a configuration from outside is read against a list of what it may hold, and
everything else is refused before a library sees it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from mobileclip.errors import DataError
from mobileclip.models.architectures import register

_SCALAR = (str, int, float, bool, type(None))
_TOP = {
    "embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "custom_text", "init_logit_scale",
    "init_logit_bias", "nonscalar_logit_scale",
}  # fmt: skip
_ATTENTION = {
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
}
_VISION = _ATTENTION | {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout",
    "attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "no_ln_pre", "pos_embed_type",
    "final_ln_after_pool", "pool_type", "output_tokens", "act_kwargs", "norm_kwargs", "timm_model_name",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
}  # fmt: skip
_TEXT = _ATTENTION | {
    "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "width", "heads",
    "layers", "mlp_ratio", "ls_init_value", "embed_cls", "pad_id", "eos_id", "no_causal_mask", "final_ln_after_pool",
    "pool_type", "proj_bias", "proj_type", "output_tokens", "act_kwargs", "norm_kwargs", "hf_model_name",
    "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "repmixer",
}  # fmt: skip
_DECODER = _TEXT | {"dim_head", "n_queries", "attn_pooler_heads"}
_SECTIONS = {"vision_cfg": _VISION, "text_cfg": _TEXT, "multimodal_cfg": _DECODER}
_TOKENIZER = {"clean", "strip_sep_token", "language", "num_merges", "reduction_mask"}
# Keyword arguments of activations and norms.
_LAYER = {"approximate", "eps", "elementwise_affine", "bias", "negative_slope", "inplace"}
_KEYWORDS = {"tokenizer_kwargs": _TOKENIZER, "act_kwargs": _LAYER, "norm_kwargs": _LAYER, "repmixer": {"kernel_size"}}
# Far beyond every published architecture; a configuration of a kilobyte must not ask for a terabyte.
_MOST = {"vocab_size": 2_000_000, "layers": 256, "context_length": 32_768, "image_size": 8_192}
_MOST_OTHERS = 65_536
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Keys of a Hugging Face folder by which transformers imports a module, from the folder or from a hub.
_CODE_KEYS = re.compile(r"auto_map|custom_\w*|trust_remote_code|\w*attn_implementation\w*|\w*kernel\w*|\w*_code\w*")
_PLACE = re.compile(r"[/\\]|\.\.")  # in what ought to be a file's plain name
_LONGEST = 8


def checked_config(config: Any, *, where: str) -> dict[str, Any]:
    """open_clip's `model_cfg` as it came with weights, if it holds nothing but shapes and choices.

    Args:
        config: The value read from the file.
        where: The file, for the sentence.

    Raises:
        DataError: It has a key or value that no architecture needs: the sentence names it.
    """
    found = _mapping(config, "model_cfg", where)
    _check_keys(found, _TOP, "model_cfg", where)
    for name, allowed in _SECTIONS.items():
        if name not in found and name == "multimodal_cfg":
            continue
        section = _mapping(found.get(name), name, where)
        _check_keys(section, allowed, name, where)
        for key, value in section.items():
            _check_value(key, value, f"{name}.{key}", where)
    for key in _TOP - _SECTIONS.keys():
        _check_value(key, found.get(key), key, where)
    _check_names(found, where)
    return found


def fewest_parameters(config: Mapping[str, Any]) -> int:
    """Parameters that a model of a checked `model_cfg` has at least; a weights file with fewer bytes is not of it."""
    return sum(_fewest(config[name]) for name in _SECTIONS if name in config)


def _fewest(section: Mapping[str, Any]) -> int:
    """Of a tower in open_clip's own numbers; 0 where timm's or Hugging Face's decide."""
    if section.get("timm_model_name") or section.get("hf_model_name"):
        return 0
    width, layers, vocabulary, places, size, patch = (
        section.get(key) or 0 for key in ("width", "layers", "vocab_size", "context_length", "image_size", "patch_size")
    )
    if isinstance(layers, list):  # a residual network's blocks, each with a convolution of three by three
        return int(9 * sum(layers) * width**2)
    places = (size // patch) ** 2 if isinstance(size, int) and patch else places
    return int(4 * layers * width**2 + (vocabulary + places) * width)


def check_text_folder(folder: Path) -> None:
    """Refuse a Hugging Face folder that names code of its own: transformers would import it.

    Args:
        folder: Local folder with `config.json`, `tokenizer.json`, ...

    Raises:
        DataError: A file of it names code, or is not JSON.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise DataError(f"model: '{folder.name}/{path.name}' is not JSON.") from None
        # The vocabulary's own entries may be called anything; what configures loaders stands at the top.
        if path.name in {"tokenizer.json", "vocab.json"} or not isinstance(content, dict):
            continue
        for key in content:
            if _CODE_KEYS.fullmatch(key) and content[key] is not None:
                raise DataError(
                    f"model: '{folder.name}/{path.name}' has the key '{key}', which can load code; want it gone."
                )
            # Where the vocabulary lay when it was written stands in old ones; transformers reads the others.
            if (
                key.endswith(("_file", "_files"))
                and key != "special_tokens_map_file"
                and _PLACE.search(str(content[key]))
            ):
                raise DataError(
                    f"model: '{folder.name}/{path.name}': {key}: got {str(content[key])[:80]!r}, want a file beside it."
                )
    if scripts := sorted(path.name for path in folder.glob("*.py")):
        raise DataError(
            f"model: '{folder.name}' holds the script '{scripts[0]}', want configuration and vocabulary alone."
        )


def _check_names(config: Mapping[str, Any], where: str) -> None:
    image = config["vision_cfg"].get("timm_model_name")
    register()
    if image is not None and not (isinstance(image, str) and timm.is_model(image.split(".")[0])):
        raise DataError(
            f"model: vision_cfg.timm_model_name: got {image!r} in '{where}', want a name of timm.list_models()."
        )
    for section in ("text_cfg", "multimodal_cfg"):
        for key in ("hf_model_name", "hf_tokenizer_name"):
            name = config.get(section, {}).get(key)
            if name is not None and not (isinstance(name, str) and _HUB_NAME.fullmatch(name) and ".." not in name):
                raise DataError(f"model: {section}.{key}: got {name!r} in '{where}', want OWNER/NAME of the hub.")


def _check_keys(found: Mapping[str, Any], allowed: set[str], name: str, where: str) -> None:
    for key in found:
        if key not in allowed:
            raise DataError(f"model: {name}.{key}: got this key in '{where}', want one that an architecture has.")


def _check_value(key: str, value: Any, name: str, where: str) -> None:
    if key in _KEYWORDS and value is not None:
        words = _mapping(value, name, where)
        _check_keys(words, _KEYWORDS[key], name, where)
        for word, inner in words.items():
            _check_value(word, inner, f"{name}.{word}", where)
        return
    items = value if isinstance(value, list) and len(value) <= _LONGEST else [value]
    most = _MOST.get(key, _MOST_OTHERS)
    for item in items:
        if isinstance(item, int | float) and not abs(item) <= most:
            raise DataError(f"model: {name}: got {item} in '{where}', want at most {most}.")
    if not all(isinstance(item, _SCALAR) for item in items):
        raise DataError(
            f"model: {name}: got {type(value).__name__} in '{where}', want a number, a word or a short list."
        )


def _mapping(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"model: {name}: got {type(value).__name__} in '{where}', want a mapping.")
    return value
