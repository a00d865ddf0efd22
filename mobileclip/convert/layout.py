"""What the public layout leaves out: teachers with their order, dims and logit scales, and the augmentation.

Public tars hold concatenated vectors and nothing that says whose they are. A layout says it: one of the presets below,
or the `reinforcement.json` that our own writer leaves beside the tars.
"""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobileclip import storage
from mobileclip.config import Views
from mobileclip.config.base import Name
from mobileclip.errors import ConfigError, DataError
from mobileclip.manifest import Source

FILE_NAME = "reinforcement.json"
SYN_PREFIX = "syn_text"

_OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
_OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherLayout(_Record):
    """One teacher's slice of the concatenated vectors."""

    name: Name
    """Name of its columns."""
    dim: int = Field(gt=0)
    """Values of its vectors."""
    license: str
    """License of its embeddings."""
    spec: dict[str, Any]
    """What its columns' spec says: model, weights digest (empty = not recorded), logit scale, preprocessing."""


class CaptionLayout(_Record):
    """One captioner."""

    column: Name
    """Name of the caption column."""
    license: str
    """License of its captions."""
    spec: dict[str, Any]
    """The caption column's spec."""


class Layout(_Record):
    """All that the tars do not say."""

    teachers: list[TeacherLayout] = Field(min_length=1)
    """In the order of concatenation."""
    size: int = Field(gt=0)
    """Side of the teachers' input [pixels]; translations of `param_aug` are in pixels of it."""
    upright: bool = False
    """Teachers saw pictures as `mobileclip.data.images.decode` reads them (upright, on white), else as Pillow does."""
    views: dict[str, Any]
    """The augmentation: `Views` fields, and whatever else the view column's spec had."""
    captions: dict[str, CaptionLayout]
    """By key of `syn.json`; a key that is not here becomes a column of its own name."""
    sources: list[Source] = []
    """License ledger of pictures and ground-truth captions."""
    license: str = "unknown"
    """License of captions whose key is not listed."""

    @property
    def width(self) -> int:
        """Values of a concatenated vector."""
        return sum(teacher.dim for teacher in self.teachers)

    @property
    def view_spec(self) -> Views:
        """The augmentation's own fields."""
        return Views.model_validate({k: v for k, v in self.views.items() if k in Views.model_fields})

    def caption(self, key: str) -> CaptionLayout:
        """Where the captions of a `syn.json` key go."""
        return self.captions.get(key) or CaptionLayout(column=key, license=self.license, spec={"syn_text_key": key})


def find_layout(name: str, folder: str) -> Layout:
    """A preset, a JSON file, or by an empty name the `reinforcement.json` beside the tars.

    Raises:
        ConfigError: No such preset or file, or the file is of another form.
    """
    if name in PRESETS:
        return PRESETS[name]
    uri = name or storage.join(folder, FILE_NAME)
    try:
        return Layout.model_validate(json.loads(storage.read_bytes(uri)))
    except DataError:
        known = ", ".join(PRESETS)
        raise ConfigError(
            f"convert: nothing says whose embeddings these are, want --layout with {known} or a file like "
            f"'{FILE_NAME}' (got '{uri}')."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{uri}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    except ValueError:
        raise ConfigError(f"{uri}: is no JSON file.") from None


def to_bytes(layout: Layout) -> bytes:
    """Canonical JSON."""
    return (json.dumps(layout.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def trainer_config(layout: Layout) -> bytes:
    """`config.json` in the shape that the reference trainer's `--dataset-reinforcement-config` reads."""
    pre = layout.teachers[0].spec.get("preprocess", {})
    augmentation: dict[str, Any] = {
        "normalize": {"mean": pre.get("mean", _OPENAI_MEAN), "std": pre.get("std", _OPENAI_STD)},
        "random_resized_crop": {"interpolation": pre.get("interpolation", "bicubic"), "size": layout.size},
        "to_rgb": {"enable": True},
        "to_tensor": {"enable": True},
    }
    if layout.view_spec.rand_augment_ops:
        augmentation["rand_augment"] = {"enable": True, "p": 1.0}
    return (json.dumps({"reinforce": {"image_augmentation": augmentation}}, indent=1, sort_keys=True) + "\n").encode()


def _published(name: str, model: str, scale: float, license_: str) -> TeacherLayout:
    preprocess = {
        "size": 224, "mode": "RGB", "mean": _OPENAI_MEAN, "std": _OPENAI_STD, "interpolation": "bicubic",
        "resize_mode": "squash",
    }  # fmt: skip
    spec = {
        "teacher": name, "model": model, "sha256": "", "dim": 768, "logit_scale": scale, "preprocess": preprocess,
        "context_length": 77,
    }  # fmt: skip
    return TeacherLayout(name=name, dim=768, license=license_, spec=spec)


_VIEWS = Views().model_dump(mode="json", exclude={"num_views"})
_NC = "CC-BY-NC-ND-4.0"

# Order, dims and scales as the public trainers' scripts give them; they stand in no data file.
PRESETS: dict[str, Layout] = {
    "datacompdr": Layout(
        teachers=[
            _published("openai", "ViT-L-14/openai", 100.0, _NC),
            _published("datacomp", "ViT-L-14/datacomp_xl_s13b_b90k", 100.0, _NC),
        ],
        size=224, views=_VIEWS, captions={}, license=_NC,
    ),
    "dfndr": Layout(
        teachers=[
            _published("dfn2b", "DFN2B-CLIP-ViT-L-14", 70.0, _NC),
            _published("dfn2b-39b", "DFN2B-CLIP-ViT-L-14-39B", 60.0, _NC),
        ],
        size=224, views=_VIEWS, captions={}, license=_NC,
    ),
}  # fmt: skip
