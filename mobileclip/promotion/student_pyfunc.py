"""The student as an MLflow pyfunc (models-from-code): pictures and texts in, embeddings or probabilities out.

MLflow copies this one file into the model and runs it there, so it imports nothing of this package: a server needs
the model's own requirements alone. The one thing it may need beside open_clip is the project's own architectures;
they travel as the module `mobileclip_architectures`.

A row has an `image`, a `text`, or both. `image` is encoded bytes (JPEG, PNG, WebP), the same in base64, or an array
uint8 [height, width, 3]. Without `labels` a row gives `image_embedding` and `text_embedding`; with `labels` it gives
`probabilities`, one per label in their order (softmax of logit scale times cosine), for its image.
"""

import base64
import gzip
import importlib
import io
import itertools
import json
import math
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
from open_clip.factory import load_checkpoint
from PIL import Image, ImageOps

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BATCH = 64
# Beyond this ratio of the sides the part that is cropped away is not scaled at all: it would need gigabytes.
_LONGEST_STRIP = 64
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
        """
        given = dict(params or {})
        frame = pd.DataFrame(model_input)
        labels = list(given.get("labels") or [])
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
        texts = self._encode_texts([template.replace("{}", label) for label in labels], True)
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
        return self.model.encode_text(self.tokenizer([str(t) for t in texts]), normalize=normalize).float()  # type: ignore[no-any-return, operator]

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


def _picture(value: Any) -> Image.Image:
    """Bytes, base64 text or an array to upright RGB; transparency is laid on white."""
    if isinstance(value, str):
        value = base64.b64decode(value, validate=True)
    if not isinstance(value, bytes | bytearray | memoryview):
        array = np.array(value.tolist() if isinstance(value, np.ndarray) else value)
        if array.ndim != 3 or array.shape[2] != 3 or array.min() < 0 or array.max() > 255:
            raise ValueError(f"image: got an array of shape {array.shape}, want [height, width, 3] of 0 to 255.")
        return Image.fromarray(array.astype(np.uint8))
    image = Image.open(io.BytesIO(bytes(value)))
    image.load()
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
