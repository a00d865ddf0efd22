"""Sections of the stages that judge and ship a student: evaluate, export, promote."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from mobileclip.config.base import HeldOut, Name, Section, Split

Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "gaussian_blur", "defocus_blur", "motion_blur",
    "brightness", "contrast", "saturate", "pixelate", "jpeg",
]  # fmt: skip


class Classification(Section):
    """One zero-shot classification over a metadata field."""

    field: Name = "group"
    """Metadata field that holds the class name."""
    templates: Annotated[list[Annotated[str, Field(pattern=r"\{\}")]], Field(min_length=1)] = ["a photo of a {}."]
    """Prompts; `{}` takes the class name; embeddings are averaged."""


class Evaluate(Section):
    """Score student and control on the evaluation split, with intervals."""

    split: HeldOut = "auto"
    """Split to evaluate on; `auto` = test where the dataset has one, else validation."""
    classifications: list[Classification] = []
    """Zero-shot tasks; empty = retrieval alone."""
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
    negative_field: str = ""
    """Metadata field with wrong captions of each picture, as SugarCrepe has them; empty = not measured."""
    linear_probe: bool = False
    """Train a linear classifier per zero-shot task on frozen embeddings of the probe split."""
    linear_probe_l2: PositiveFloat = 1e-3
    """Penalty on its squared weights."""
    knn: NonNegativeInt = 0
    """Neighbors in the probe split that vote on each zero-shot task; 0 = not measured."""
    probe_split: Split = "train"
    """Split that the linear classifier and the neighbors come from."""
    corruptions: list[Corruption] = []
    """Kinds of corruption under which the headline metric is measured again; empty = none."""
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)] = [1, 3, 5]
    """Severities of each corruption, 1 to 5."""
    resolutions: list[Annotated[int, Field(ge=32, le=4096)]] = []
    """Input sizes in pixels at which the headline metric is measured again; empty = none."""
    gallery: Annotated[int, Field(ge=0, le=40)] = 12
    """Queries shown in the report's retrieval gallery, half of them texts, half pictures."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap and of the gallery's choice."""


class LabelBank(Section):
    """Class embeddings that export computes beforehand, so that an app needs no text program."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = "classes"
    """Name of its files below `prompts/`."""
    labels: list[str] = []
    """Class names; empty = the values of `field`."""
    field: str = ""
    """Metadata field whose values in the split are the class names; empty = `labels`."""
    templates: Annotated[list[Annotated[str, Field(pattern=r"\{\}")]], Field(min_length=1)] = ["a photo of a {}."]
    """Prompts; `{}` takes the class name; embeddings are averaged."""
    precision: Literal["float32", "float16", "int8"] = "float16"
    """How the embeddings are stored; int8 has one scale per class."""
    max_error: PositiveFloat = 0.01
    """Largest error relative to the spread of the classes."""


class Export(Section):
    """Write the student's towers for the phone runtimes, with proof."""

    formats: Annotated[
        list[Literal["onnx", "executorch", "executorch_coreml", "litert", "coreml", "coreai"]], Field(min_length=1)
    ] = ["onnx"]
    """Program formats; each but `onnx` and `coreai` is an extra of that name (`executorch_coreml`: `executorch`);
    `litert` and `coreai` need `mobileclip environment` of that name."""
    precisions: Annotated[
        list[Literal["float32", "float16", "int8", "int8_static", "int8_weights", "int4_weights"]], Field(min_length=1)
    ] = ["float32"]
    """Precisions of each program, where its format has them: `int8` text tower, activations per call; `int8_static`
    image tower, activations calibrated; `int8_weights` weights alone; `int4_weights` the text tower's."""
    batch: NonNegativeInt = 0
    """Rows per call of every program; 0 = any number in ONNX, one in the other formats."""
    split: HeldOut = "auto"
    """Split whose samples prove the programs; `auto` = test where the dataset has one, else validation, else train."""
    samples: Annotated[int, Field(ge=2)] = 64
    """Evaluation samples on which every program is executed and compared."""
    max_error_float32: PositiveFloat = 1e-4
    """Largest error relative to the centered embeddings of a float32 program."""
    max_error_float16: PositiveFloat = 0.03
    """The same for float16."""
    max_error_int8: PositiveFloat = 0.25
    """The same for int4 and the three kinds of int8."""
    max_kept: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest share of layers that an int8 or int4 program may hold in floating point to meet its budget, the worst
    first; 0 = none."""
    max_rank: NonNegativeInt = 0
    """Largest number of axes of a tensor in an ONNX or LiteRT program; GPUs and NPUs of phones take 4. 0 = any."""
    residency: dict[Literal["litert_gpu", "qnn", "coreml_ane", "webgpu"], Annotated[float, Field(ge=0, le=1)]] = {}
    """Smallest share of a program's operators that a delegate must take, by rule; empty = reported, not demanded."""
    calibration_split: Split = "train"
    """Split whose samples calibrate int8 programs and choose the layers they keep in float32."""
    calibration_samples: Annotated[int, Field(ge=2)] = 32
    """Samples of calibration."""
    qat_steps: NonNegativeInt = 0
    """Steps of quantization-aware fine-tuning of the image tower on `calibration_split`, where its `int8_static`
    program misses the budget without; 0 = none."""
    qat_learning_rate: PositiveFloat = 3e-5
    """Learning rate of its first step; it falls to 0 along a cosine."""
    qat_batch_size: Annotated[int, Field(ge=2)] = 32
    """Samples per step of it."""
    qat_teacher_weight: NonNegativeFloat = 0.01
    """Weight of the teachers' stored affinities beside the tower's own embeddings, where the dataset has them."""
    qat_seed: NonNegativeInt = 0
    """Seed of its order and draws."""
    zero_shot_field: str = ""
    """Metadata field that holds the class name for the programs' zero-shot accuracy; samples without it do not count,
    but some must have it; empty = no such figure."""
    zero_shot_template: Annotated[str, Field(pattern=r"\{\}")] = "a photo of a {}."
    """Prompt of that task; `{}` takes the class name."""
    opset: Annotated[int, Field(ge=20, le=23)] = 20
    """ONNX operator set; below 20 GELU is not fused."""
    latency_runs: NonNegativeInt = 20
    """Measured turns of each program and of PyTorch at 1 and 2 threads; 0 = not measured."""
    prompt_banks: list[LabelBank] = []
    """Class embeddings computed beforehand."""
    bundle: Literal["none", "programs", "page"] = "none"
    """Write `mobileclip-STUDENT-VERSION.zip`: with everything the export holds, and with a page that runs it in a
    browser (npm gets ONNX Runtime Web once)."""
    bundle_version: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]*)?$")] = ""
    """Version in the bundle's name; empty = the first 12 digits of the weights' digest."""


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
    """Licenses the lineage may contain: of `A AND B` both must be listed, of `A OR B` one; empty = any."""


class Promote(Section):
    """Register the student and let the gate decide on the champion alias."""

    model_name: Name = "mobileclip-student"
    """Name in the model registry."""
    why: str = ""
    """Reason of the promotion, kept in its history."""
    gate: Gate = Gate()
    """The demands."""
