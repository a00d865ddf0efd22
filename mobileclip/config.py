"""Every key of params.yaml, one section per stage, with type, range and meaning.

Importing this module loads neither torch nor any stage, so pipelines compile and the CLI prints help fast.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mobileclip.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Split = Literal["train", "validation", "test"]
# Column names that are taken, alone or behind a teacher's.
_COLUMNS = frozenset({"views", "captions", "scores", "selection"})
Dtype = Literal["float16", "bfloat16", "float32", "int8"]


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Prepare(Section):
    """Turn a user's images and captions into checked webdataset shards with a manifest."""

    source: Literal["auto", "table", "folder", "webdataset"] = "auto"
    """How the input is laid out; `auto` looks at what is there."""
    table: str = "captions.jsonl"
    """Caption table inside the input folder (.jsonl or .csv), read when `source` is table or auto."""
    license: str = "unknown"
    """License of pictures and captions that do not name their own (SPDX identifier or a name)."""
    validation_share: Share = 0.05
    """Share of groups that go to the validation split, for samples that name no split."""
    group_field: str = "group_key"
    """Samples with the same value of this field never lie in two splits; absent: the uid."""
    shard_samples: PositiveInt = 1000
    """Samples per shard."""
    max_pixels: Annotated[int, Field(ge=1, le=89_000_000)] = 50_000_000  # Pillow's own limit lies just above
    """Larger pictures are quarantined [pixels]."""
    max_bad_share: Share = 0.01
    """The stage fails when more than this share of the samples had to be quarantined."""


class Optimizer(Section):
    """AdamW with linear warm-up and cosine decay."""

    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    lr_end: NonNegativeFloat = 1e-6
    """Learning rate at the last step."""
    warmup_steps: NonNegativeInt = 1000
    """Steps of linear warm-up from zero."""
    weight_decay: NonNegativeFloat = 0.2
    """Decoupled weight decay; never applied to norms, biases and the logit scale."""
    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Denominator floor."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 = no clipping."""


class Training(Section):
    """How long and on how much one model is trained."""

    steps: PositiveInt = 30_000
    """Optimizer steps."""
    batch_size: PositiveInt = 8192
    """Samples per step, over all processes."""
    optimizer: Optimizer = Optimizer()
    """Step size and its schedule."""
    ema_decay: Share = 0.0
    """Decay of the running mean of the weights that is saved; 0 = save the last weights."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type of the forward pass; float16 needs a GPU."""
    workers: NonNegativeInt = 2
    """Loader processes; 0 = load in the training process. Does not change any result."""
    log_every: PositiveInt = 50
    """Steps between two points of the learning curve."""
    checkpoint_every: NonNegativeInt = 1000
    """Steps between two checkpoints; 0 = none."""


class Teacher(Section):
    """One CLIP teacher to train."""

    name: Name = "teacher"
    """Name by which later stages call it: `trained:NAME`."""
    model: str = "tiny"
    """Architecture: an open_clip name or one of the project's own (`mobileclip models`)."""
    image_weights: str = ""
    """Image trunk weights (.safetensors) inside the `towers` input; empty = from scratch."""
    text_weights: str = ""
    """Hugging Face text model folder inside the `towers` input; empty = from scratch."""
    lock: bool = False
    """Freeze both pretrained towers and train the projections alone on cached features (locked tuning)."""
    training: Training = Training()
    """Length and step size."""


class TrainTeacher(Section):
    """Train in-domain CLIP teachers; skipped when `teachers` is empty."""

    teachers: list[Teacher] = []
    """Teachers, trained one after the other."""
    captions: Annotated[list[Name], Field(min_length=1)] = ["captions"]
    """Caption fields of the samples to learn from; one is drawn per sample and step."""
    seed: NonNegativeInt = 0
    """Seed of weights, order and augmentation."""


class Filter(Section):
    """Score image-text pairs with a CLIP model and keep the best as a selection column (DFN-style)."""

    model: str = "trained:teacher"
    """Scoring CLIP: `trained:NAME`, an open_clip name, `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag, where `model` is an open_clip name."""
    keep_share: Share = 0.9
    """Share of the training pairs with the highest cosine that is kept."""
    min_score: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Pairs below this cosine are dropped whatever the share."""
    batch_size: PositiveInt = 64
    """Pairs per forward pass."""


class FinetuneCaptioner(Section):
    """Pre-train a CoCa captioner on the alt text, then fine-tune it on better captions."""

    model: str = "tiny-coca"
    """CoCa: an architecture (open_clip's or the project's own), or weights as `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag to start from; empty = from scratch, for an architecture."""
    pretrain_field: Name = "captions"
    """Caption field of the pre-training."""
    pretrain: Training = Training()
    """Pre-training length; skipped when the model comes with weights."""
    finetune_field: Name = "descriptions"
    """Caption field of the fine-tuning; samples that lack it are left out."""
    finetune: Training = Training()
    """Fine-tuning length."""
    caption_weight: NonNegativeFloat = 2.0
    """Weight of the captioning loss (CoCa: 2)."""
    contrastive_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss (CoCa: 1)."""
    held_out_samples: PositiveInt = 500
    """Validation samples that are captioned and scored (CIDEr, BLEU, CLIP score), before and after the fine-tuning."""
    seed: NonNegativeInt = 0
    """Seed of weights, order and augmentation."""

    @model_validator(mode="after")
    def _check_weights(self) -> "FinetuneCaptioner":
        if self.caption_weight + self.contrastive_weight == 0:
            raise ValueError("caption_weight and contrastive_weight are both 0, want one above 0")
        return self


class Caption(Section):
    """Write M synthetic captions per image as a caption column."""

    name: Name = "coca"
    """Name of the caption column."""
    model: str = "trained"
    """Captioner: `trained` (the `captioner` input), an open_clip CoCa name, `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag, where `model` is an open_clip name."""
    num_captions: PositiveInt = 5
    """Captions per image (M); the papers use 5, two bring most of the gain."""
    method: Literal["top_p", "top_k", "greedy", "beam"] = "top_p"
    """How tokens are chosen; `beam` gives the best captions of one search, as open_clip's does."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass kept by `top_p`."""
    top_k: PositiveInt = 50
    """Tokens kept by `top_k`."""
    num_beams: Annotated[int, Field(ge=2)] = 6
    """Hypotheses kept by `beam`, at least `num_captions`."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of the tokens that `top_p` or `top_k` kept, before drawing."""
    min_tokens: NonNegativeInt = 5
    """Fewest tokens, start token included, before an end token may come."""
    max_tokens: PositiveInt = 30
    """Most tokens, start and end token included."""
    batch_size: PositiveInt = 32
    """Images decoded together; changes no caption."""
    max_degenerate_share: Share = 0.5
    """The stage fails when more captions than this are empty, of one word, or loop."""
    splits: list[Split] = ["train"]
    """Splits to caption."""
    score_samples: NonNegativeInt = 1000
    """Images whose captions get a CLIP score in the quality report; 0 = none."""
    score_model: str = ""
    """CLIP that scores them, `hf-hub:...` or `local-dir:...`; empty = the captioner's own contrastive towers."""
    seed: NonNegativeInt = 0
    """Seed of the sampling, together with uid and caption index."""

    @model_validator(mode="after")
    def _check_name(self) -> "Caption":
        if self.name in _COLUMNS:
            raise ValueError(f"name is '{self.name}', want another one: the dataset has a column of that name")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> "Caption":
        if max(self.min_tokens, 1) >= self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, want less than max_tokens ({self.max_tokens})")
        if self.method == "greedy" and self.num_captions > 1:
            raise ValueError(f"num_captions is {self.num_captions}, want 1: greedy captions of one image are all equal")
        if self.method == "beam" and self.num_captions > self.num_beams:
            raise ValueError(f"num_captions is {self.num_captions}, want at most num_beams ({self.num_beams})")
        return self


class Views(Section):
    """Stored augmentations: RandomResizedCrop, then RandAugment (MobileCLIP section 4)."""

    num_views: PositiveInt = 10
    """Views per image (N); gains saturate near 5."""
    scale_min: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest crop area as a share of the image."""
    scale_max: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest crop area as a share of the image."""
    ratio_min: PositiveFloat = 0.75
    """Smallest aspect ratio (width / height) of the crop."""
    ratio_max: PositiveFloat = 1.3333333333333333
    """Largest aspect ratio of the crop."""
    rand_augment_ops: Annotated[int, Field(ge=0, le=2)] = 2
    """RandAugment operations per view."""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment strength bin of 31."""

    @model_validator(mode="after")
    def _check_ranges(self) -> "Views":
        for name in ("scale", "ratio"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ValueError(f"{name}_min is {low}, want at most {name}_max ({high})")
        return self


class TeacherRef(Section):
    """One teacher whose embeddings are stored."""

    name: Name = "teacher"
    """Name of the teacher's columns."""
    model: str = "trained:teacher"
    """`trained:NAME` (the `teachers` input), an open_clip name, `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag, where `model` is an open_clip name."""
    license: str = ""
    """License of the weights; empty = the one recorded with them."""


class Reinforce(Section):
    """Draw N views per image and store every teacher's embeddings of views and captions."""

    views: Views = Views()
    """The stored augmentations."""
    teachers: list[TeacherRef] = [TeacherRef()]
    """The ensemble, in order."""
    captions: list[Name] = ["coca"]
    """Synthetic caption columns to embed beside the ground truth."""
    caption_field: Name = "captions"
    """Ground-truth caption field to embed."""
    dtype: Dtype = "float16"
    """Storage type of embeddings; int8 has one scale per vector."""
    batch_size: PositiveInt = 64
    """Views per forward pass."""
    splits: list[Split] = ["train"]
    """Splits to reinforce."""
    seed: NonNegativeInt = 0
    """Seed of the views, together with uid and view index."""


class Calibrate(Section):
    """Search the teachers' logit scales on stored embeddings alone."""

    enabled: bool = True
    """Off: keep each teacher's own logit scale."""
    select: bool = True
    """Leave a teacher out of the ensemble where it makes the averaged affinities worse."""
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0]
    """Candidate scales (1 / temperature)."""
    batch_size: PositiveInt = 256
    """Batch over which the affinities are formed; should be the student's."""
    batches: PositiveInt = 8
    """Batches averaged."""
    seed: NonNegativeInt = 0
    """Seed of the batches."""


class Distill(Section):
    """Train a student on a reinforced dataset."""

    model: str = "tiny-mci"
    """Student: an open_clip name or one of the project's own (`mobileclip models`)."""
    pretrained: str = ""
    """open_clip weights tag to start from; empty = from scratch."""
    distill_weight: Share = 1.0
    """Lambda: share of the distillation loss; the CLIP loss has the rest."""
    synthetic: list[Name] = ["coca"]
    """Caption columns used beside the ground truth; empty = ground truth alone."""
    caption_field: Name = "captions"
    """Ground-truth caption field."""
    teachers: list[Name] = []
    """Teachers to learn from, by column name; empty = the calibrated ensemble, else all in the manifest."""
    selection: bool = True
    """Train on the pairs the filter kept, where the manifest has a selection."""
    training: Training = Training()
    """Length and step size."""
    control: bool = False
    """Also train the plain-CLIP control: same student, steps, batches and views, ground-truth captions, lambda 0."""
    seed: NonNegativeInt = 0
    """Seed of weights, order and draws."""


class Classification(Section):
    """One zero-shot classification over a metadata field."""

    field: Name = "group"
    """Metadata field that holds the class name."""
    templates: Annotated[list[Annotated[str, Field(pattern=r"\{\}")]], Field(min_length=1)] = ["a photo of a {}."]
    """Prompts; `{}` takes the class name; embeddings are averaged."""


class Evaluate(Section):
    """Score student and control on the evaluation split, with intervals."""

    split: Split = "test"
    """Split to evaluate on."""
    classifications: list[Classification] = [Classification()]
    """Zero-shot tasks."""
    retrieval_field: Name = "captions"
    """Caption field of the retrieval task."""
    retrieval_captions: PositiveInt = 1
    """Captions per sample used in retrieval, the first ones (5 for COCO and Flickr30k)."""
    headline: Annotated[str, Field(pattern=r"^(retrieval|zero_shot)/.+")] = "retrieval/mean/r1"
    """Metric on which the report's first sentence gives its verdict; named before the numbers are known."""
    slice_field: str = ""
    """Metadata field whose values are also scored apart; empty = none."""
    bootstrap: PositiveInt = 1000
    """Bootstrap resamples."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    batch_size: PositiveInt = 128
    """Samples per forward pass."""
    gallery: Annotated[int, Field(ge=0, le=40)] = 12
    """Queries shown in the report's retrieval gallery, half of them texts, half pictures."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap and of the gallery's choice."""


class Export(Section):
    """Write the student's towers for the phone runtimes, with proof."""

    formats: Annotated[list[Literal["onnx"]], Field(min_length=1)] = ["onnx"]
    """Program formats."""
    precisions: Annotated[list[Literal["float32", "float16", "int8"]], Field(min_length=1)] = ["float32"]
    """Precisions of each program; int8 is dynamic quantization of the text tower's matrix products."""
    split: Split = "test"
    """Split whose samples prove the programs."""
    samples: Annotated[int, Field(ge=2)] = 64
    """Evaluation samples on which every program is executed and compared."""
    max_error_float32: PositiveFloat = 1e-4
    """Largest error relative to the centered embeddings of a float32 program."""
    max_error_float16: PositiveFloat = 0.03
    """The same for float16."""
    max_error_int8: PositiveFloat = 0.25
    """The same for int8."""
    opset: Annotated[int, Field(ge=20, le=23)] = 20
    """ONNX operator set; below 20 GELU is not fused."""
    latency_runs: NonNegativeInt = 20
    """Measured turns of each program and of PyTorch at 1 and 2 threads; 0 = not measured."""


class Gate(Section):
    """What a student must show before it becomes champion."""

    metric: str = "student/retrieval/i2t/r10"
    """Metric of evaluate's metrics.json that decides."""
    minimum: float = 0.0
    """Smallest value of the metric."""
    minimums: dict[str, float] = {}
    """Smallest values of further metrics, by name (evaluate's; export's below `export/`)."""
    maximums: dict[str, float] = {}
    """Largest values, by name: budgets of latency and size (times of evaluate and export below `timings/`)."""
    beat_control: bool = False
    """Demand that the paired interval of student minus control lies above zero."""
    max_regression: NonNegativeFloat = 0.02
    """Largest allowed loss of the metric against the champion."""
    regression_rule: Literal["non_inferior", "not_worse", "point", "ignore"] = "non_inferior"
    """`non_inferior`: the paired interval shows that no more is lost; `not_worse`: it does not show that more is lost;
    `point`: the bare difference; `ignore`: no comparison with the champion."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the paired interval against the champion."""
    require_export_proof: bool = True
    """Demand that every exported program met its budget."""
    lineage: Literal["files", "records", "ignore"] = "records"
    """Digests that must agree from the student back to the data: `records` of all stages with their models and
    programs, `files` = every shard and column as well."""
    commercial_use: bool = False
    """Refuse a lineage with research-only, non-commercial or unknown licenses."""
    allowed_licenses: list[str] = []
    """Licenses the lineage may contain; empty = any."""


class Promote(Section):
    """Register the student and let the gate decide on the champion alias."""

    model_name: Name = "mobileclip-student"
    """Name in the model registry."""
    why: str = ""
    """Reason of the promotion, kept in its history."""
    gate: Gate = Gate()
    """The demands."""


class Params(Section):
    """params.yaml: one section per stage."""

    prepare: Prepare = Prepare()
    train_teacher: TrainTeacher = TrainTeacher()
    filter: Filter = Filter()
    finetune_captioner: FinetuneCaptioner = FinetuneCaptioner()
    caption: Caption = Caption()
    reinforce: Reinforce = Reinforce()
    calibrate: Calibrate = Calibrate()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    promote: Promote = Promote()

    @model_validator(mode="after")
    def _check_names(self) -> "Params":
        for label, names in (
            ("train_teacher.teachers", [t.name for t in self.train_teacher.teachers]),
            ("reinforce.teachers", [t.name for t in self.reinforce.teachers]),
        ):
            if len(names) != len(set(names)):
                raise ValueError(f"{label}: names must differ, got {names}")
        return self


STAGES: tuple[str, ...] = tuple(Params.model_fields)


def check_section(stage: str, section: Section | Mapping[str, Any]) -> Section:
    """Validate one stage's section as it comes from outside.

    Args:
        stage: One of `STAGES`.
        section: A mapping that names **every** key (a half-filled section would silently take code defaults that
            params.yaml never showed), or an already validated section.

    Raises:
        ConfigError: One sentence per wrong key, each with its dotted name.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage: got '{stage}', want one of {', '.join(STAGES)}.")
    if isinstance(section, Section):
        wanted = type(getattr(Params(), stage))
        if not isinstance(section, wanted):
            raise ConfigError(f"{stage}: got a section of type {type(section).__name__}, want {wanted.__name__}.")
        return section
    checked = _validate(Params, {stage: dict(section)})
    missing = _unset(getattr(checked, stage), prefix=stage)
    if missing:
        raise ConfigError(f"{missing[0]}: missing, every key of a section must be given (params.yaml is complete).")
    return getattr(checked, stage)  # type: ignore[no-any-return]


def read_params(path: Path) -> Params:
    """Read and check a whole params file.

    Raises:
        ConfigError: The file is absent, is no mapping, or a key is unknown, missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"params: no file '{path}', want a YAML file with one section per stage.")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"params: '{path}' is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"params: '{path}' holds {type(loaded).__name__}, want a mapping with one section per stage.")
    params = _validate(Params, loaded)
    missing = _unset(params)
    if missing:
        raise ConfigError(f"{missing[0]}: missing in '{path}', want every key of every section.")
    return params


def _validate(model: type[Params], values: Mapping[str, Any]) -> Params:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "params"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key."
    want = error["msg"].removeprefix("Value error, ")
    got = error["input"]
    shown = f"got {got!r}, " if isinstance(got, str | int | float | bool | type(None)) else ""
    return f"{key}: {shown}{want[0].lower()}{want[1:]}."


def _unset(section: BaseModel, prefix: str = "") -> list[str]:
    """Dotted names of the keys that were left to their defaults."""
    found = []
    for key in type(section).model_fields:
        dotted = f"{prefix}.{key}" if prefix else key
        value = getattr(section, key)
        if key not in section.model_fields_set:
            found.append(dotted)
        elif isinstance(value, BaseModel):
            found += _unset(value, dotted)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    found += _unset(item, f"{dotted}.{index}")
    return found
