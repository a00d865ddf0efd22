"""The student as an MLflow pyfunc (models-from-code): pictures and texts in, embeddings or probabilities out.

MLflow copies this one file into the model and runs it there, so it imports nothing of this package: a server needs
the model's own requirements alone. The one thing it may need beside open_clip is the project's own architectures;
they travel as the module `mobileclip_architectures`.

A row has an `image`, a `text`, or both. `image` is encoded bytes (JPEG, PNG, WebP, GIF, BMP), the same in base64, or an
array [height, width, 3] of whole numbers 0 to 255 or of fractions 0 to 1. Without `labels` a row gives
`image_embedding` and `text_embedding`; with `labels` it gives `probabilities`, one per label in their order (softmax of
logit scale times cosine), for its image. Lists in one row, as `{"text": ["a cat", "a dog"]}` arrives, are rows.

What cannot be answered is refused in one sentence, which MLflow's server passes on with status 400.
"""

import base64
import binascii
import gzip
import importlib
import io
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow  # noqa: TID251 - this file is the model itself; the package never imports it
import numpy as np
import open_clip
import pandas as pd  # type: ignore[import-untyped]
import torch
import transformers.dynamic_module_utils
from mlflow.exceptions import MlflowException  # noqa: TID251 - as above
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE  # noqa: TID251 - as above
from open_clip.factory import load_checkpoint
from PIL import Image, ImageOps

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BATCH = 64
# Beyond this ratio of the sides the part that is cropped away is not scaled at all: it would need gigabytes.
_LONGEST_STRIP = 64
# As in the stages; Pillow's other readers (EPS starts Ghostscript) are not for bytes from the web.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MAX_PIXELS = int(os.environ.get("MOBILECLIP_MAX_PIXELS") or 1 << 25)
_MAX_LABELS = int(os.environ.get("MOBILECLIP_MAX_LABELS") or 20_000)
_MAX_LETTERS = 10_000  # of a text, of which the tower reads some hundred
transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # a text tower's code is never run, and nobody is asked
# What a checkpoint may say to its tokenizer; other words would reach transformers, which runs code where it is told to.
_TOKENIZER = ("clean", "strip_sep_token", "language")


class Student(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A CLIP student: image and text tower, preprocessing, tokenizer and logit scale."""

    def load_context(self, context: Any) -> None:
        """Build the model from its checkpoint folder (open_clip's `local-dir` layout, safetensors weights)."""
        folder = Path(context.artifacts["student"])
        raw = json.loads((folder / "open_clip_config.json").read_text())
        self.preprocess = raw["preprocess_cfg"]
        self.text_folder = folder / "text"
        self.model = _build(raw["model_cfg"], self.text_folder)
        load_checkpoint(self.model, str(folder / "open_clip_model.safetensors"), strict=True)
        self.model.eval()
        self.tokenizer = _tokenizer(raw["model_cfg"], self.text_folder)

    @torch.no_grad()
    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's own signature
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Embeddings, or probabilities of `params["labels"]`.

        Args:
            context: Unused after loading.
            model_input: Data frame with a column `image`, a column `text`, or both.
            params: `labels` (texts), `template` (`{}` takes the label), `normalize` (embeddings to unit length).

        Returns:
            Data frame with one row per input row.

        Raises:
            MlflowException: The input cannot be used; one sentence.
        """
        try:
            return self._answer(_rows(pd.DataFrame(model_input)), dict(params or {}))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception as error:  # noqa: BLE001 - whatever it is
            # A server sends the traceback of any other error to its client, with the paths of its files.
            kind = type(error).__name__
            raise MlflowException(f"model: cannot answer ({kind}).", error_code=INTERNAL_ERROR) from None

    def _answer(self, frame: pd.DataFrame, given: dict[str, Any]) -> pd.DataFrame:
        labels = [_text(label, "labels") for label in given.get("labels") or []]
        if len(labels) > _MAX_LABELS:
            raise ValueError(f"labels: got {len(labels)}, want at most {_MAX_LABELS}.")
        if labels:
            return pd.DataFrame({"probabilities": self._classify(frame, labels, str(given.get("template") or "{}"))})
        normalize = bool(given.get("normalize", True))
        encoders = {"image": self._encode_images, "text": self._encode_texts}
        columns = {
            f"{name}_embedding": _on_present(frame[name], encode, normalize)
            for name, encode in encoders.items()
            if name in frame
        }
        if not columns:
            raise ValueError(f"input: got columns {list(frame.columns)}, want `image`, `text` or both.")
        return pd.DataFrame(columns)

    def _classify(self, frame: pd.DataFrame, labels: list[str], template: str) -> list[list[float] | None]:
        if "image" not in frame:
            raise ValueError("labels: given without a column `image`, want pictures to classify.")
        if "{}" not in template:
            raise ValueError(f"template: got '{template}', want a text with {{}} for the label.")
        sentences = [template.replace("{}", label) for label in labels]
        parts = [sentences[start : start + _BATCH] for start in range(0, len(sentences), _BATCH)]
        texts = torch.cat([self._encode_texts(part, True) for part in parts])
        scale = float(torch.as_tensor(self.model.logit_scale).exp().reshape(-1)[0])
        bias = getattr(self.model, "logit_bias", None)

        def probabilities(images: list[Any], normalize: bool) -> torch.Tensor:
            logits = scale * self._encode_images(images, normalize) @ texts.T
            # A bias is the same for every label, so the softmax does not see it.
            return (logits if bias is None else logits + bias).softmax(dim=-1)

        return _on_present(frame["image"], probabilities, True)

    def _encode_images(self, images: list[Any], normalize: bool) -> torch.Tensor:
        mean = torch.tensor(self.preprocess["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocess["std"]).view(1, 3, 1, 1)
        pixels = torch.stack([self._pixels(image) for image in images])
        return self.model.encode_image((pixels.float() / 255 - mean) / std, normalize=normalize).float()  # type: ignore[no-any-return, operator]

    def _encode_texts(self, texts: list[Any], normalize: bool) -> torch.Tensor:
        tokens = self.tokenizer([_text(text, "text") for text in texts])
        return self.model.encode_text(tokens, normalize=normalize).float()  # type: ignore[no-any-return, operator]

    def _pixels(self, image: Any) -> torch.Tensor:
        size = self.preprocess["size"]
        fitted = _fit(_picture(image), size if isinstance(size, int) else size[0], self.preprocess)
        return torch.from_numpy(np.array(fitted, dtype=np.uint8)).permute(2, 0, 1)


def _fit(image: Image.Image, size: int, how: Mapping[str, Any]) -> Image.Image:
    """An image at the input size, as `resize_mode` says: `mobileclip.data.images.fit`, which a server does not have."""
    filter_, mode = _FILTERS[how["interpolation"]], how.get("resize_mode", "shortest")
    if mode == "squash":
        return image.resize((size, size), filter_)
    if mode == "longest":
        ratio = max(image.width / size, image.height / size)
        width, height = (max(1, round(side / ratio)) for side in image.size)
        canvas = Image.new("RGB", (size, size), (how.get("fill_color", 0),) * 3)
        canvas.paste(image.resize((width, height), filter_), ((size - width) // 2, (size - height) // 2))
        return canvas
    short, long = sorted(image.size)
    scaled, tall = int(size * long / short), image.height > image.width
    start = round((scaled - size) / 2)
    if scaled > _LONGEST_STRIP * size:
        first, last = (place * long / scaled for place in (start, start + size))
        return image.resize((size, size), filter_, box=(0, first, short, last) if tall else (first, 0, last, short))
    whole = image.resize((size, scaled) if tall else (scaled, size), filter_)
    return whole.crop((0, start, size, start + size) if tall else (start, 0, start + size, size))


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """One value per cell: lists in a single row, which is how MLflow passes lists on, are spread into rows.

    Raises:
        ValueError: They differ in length.
    """
    known = [name for name in ("image", "text") if name in frame]
    if len(frame) != 1 or not known:
        return frame
    spread = {name: _listed(frame[name].iloc[0], depth=3 if name == "image" else 0) for name in known}
    lengths = {name: len(values) for name, values in spread.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"input: got {lengths} rows, want as many images as texts.")
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in spread.items()})


def _listed(value: Any, *, depth: int) -> list[Any]:
    """The values of a list, or the one value; a value itself may be nested `depth` deep."""
    if isinstance(value, np.ndarray) and (value.ndim > depth or value.dtype == object):
        return list(value)
    if not isinstance(value, list | tuple):
        return [value]
    inner, nested = value, 0
    while isinstance(inner, list | tuple | np.ndarray) and len(inner):
        inner, nested = inner[0], nested + 1
    return list(value) if nested > depth or isinstance(inner, str | bytes) or not nested else [value]


def _text(value: Any, name: str) -> str:
    """A text of a length that a tokenizer takes.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name}: got {type(value).__name__}, want a text.")
    if len(value) > _MAX_LETTERS:
        raise ValueError(f"{name}: got {len(value)} letters, want at most {_MAX_LETTERS}.")
    return value


def _picture(value: Any) -> Image.Image:
    """Bytes, base64 text or an array to upright RGB; transparency is laid on white.

    Raises:
        ValueError: It is none of these, damaged, or too large.
    """
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("image: got a text that is no base64, want the bytes of an image in base64.") from None
    if not isinstance(value, bytes | bytearray | memoryview):
        return _from_array(value)
    try:
        image = Image.open(io.BytesIO(bytes(value)), formats=_FORMATS)
        width, height = image.size
        if width * height <= _MAX_PIXELS:
            image.load()
            return _upright(image)
    except Exception:  # noqa: BLE001 - on damaged bytes Pillow raises far more than it documents
        raise ValueError(f"image: cannot be decoded, want a whole {', '.join(_FORMATS)}.") from None
    raise ValueError(f"image: got {width}x{height} pixels, want at most {_MAX_PIXELS} in all.")


def _from_array(value: Any) -> Image.Image:
    wanted = "want [height, width, 3] of whole numbers 0 to 255 or of fractions 0 to 1."
    try:
        array = np.array(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except ValueError:  # lists of unequal lengths
        raise ValueError(f"image: got uneven lists, {wanted}") from None
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0 or array.dtype.kind not in "uif":
        raise ValueError(f"image: got {array.dtype} of shape {list(array.shape)}, {wanted}")
    low, high = float(array.min()), float(array.max())
    if array.shape[0] * array.shape[1] > _MAX_PIXELS:
        raise ValueError(f"image: got {array.shape[1]}x{array.shape[0]} pixels, want at most {_MAX_PIXELS} in all.")
    fractions = array.dtype.kind == "f" and high <= 1
    if not (low >= 0 and high <= 255) or not (fractions or np.array_equal(array, np.round(array))):
        raise ValueError(f"image: got numbers from {low:g} to {high:g}, {wanted}")
    return Image.fromarray(np.round(array * 255 if fractions else array).astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(upright, dtype=np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in upright.getbands() or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def _on_present(
    column: Any, encode: Callable[[list[Any], bool], torch.Tensor], normalize: bool
) -> list[list[float] | None]:
    """Encode the rows that hold something, in batches; the others stay None."""
    values = list(column)
    present = [i for i, value in enumerate(values) if not _absent(value)]
    result: list[list[float] | None] = [None] * len(values)
    for start in range(0, len(present), _BATCH):
        rows = present[start : start + _BATCH]
        encoded = encode([values[i] for i in rows], normalize)
        for row, vector in zip(rows, encoded.tolist(), strict=True):
            result[row] = vector
    return result


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _build(config: dict[str, Any], text_folder: Path) -> torch.nn.Module:
    config = json.loads(json.dumps(config))
    vision, text = config["vision_cfg"], config["text_cfg"]
    _know_own_architectures()
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        if text_folder.is_dir():
            text["hf_model_name"] = str(text_folder)
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "repmixer" in text:  # MobileCLIP-S0's text tower, which open_clip does not know
        return importlib.import_module("mobileclip_text_repmixer").clip_with_text_repmixer(config)  # type: ignore[no-any-return]
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    built: Any = open_clip.CustomTextCLIP(**config) if custom else open_clip.CLIP(**config)
    trunk: Any = getattr(built.visual, "trunk", None)
    size = vision.get("image_size")
    built_for = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if isinstance(size, int) and built_for not in {None, (size, size)}:
        trunk.set_input_size(img_size=(size, size))  # open_clip builds timm's ViTs for the size in their name
    return built  # type: ignore[no-any-return]


def _know_own_architectures() -> None:
    if (
        "mobileclip.models.architectures" not in sys.modules
    ):  # else they are registered, and timm warns of a second time
        importlib.import_module("mobileclip_architectures")


def _tokenizer(config: dict[str, Any], text_folder: Path) -> Callable[[list[str]], torch.Tensor]:
    text = config["text_cfg"]
    length, options = int(text.get("context_length", 77)), dict(text.get("tokenizer_kwargs", {}))
    if "hf_tokenizer_name" in text:
        source = str(text_folder) if text_folder.is_dir() else text["hf_tokenizer_name"]
        options = {name: value for name, value in options.items() if name in _TOKENIZER} | {"trust_remote_code": False}
        return open_clip.tokenizer.HFTokenizer(source, context_length=length, **options)
    merges = options.pop("num_merges", 0)
    if not merges:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as handle:
        lines = list(itertools.islice(handle, merges + 1))  # the first line is a header
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt.gz"
        path.write_bytes(gzip.compress("".join(lines).rstrip("\n").encode(), mtime=0))
        return open_clip.SimpleTokenizer(str(path), context_length=length, **options)


mlflow.models.set_model(Student())
