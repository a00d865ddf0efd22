"""Sections of the stages that make the dataset: prepare, filter, caption, reinforce, calibrate."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mobileclip.config.base import TAKEN_COLUMNS, Dtype, Name, Section, Share, Split
from mobileclip.config.training import Optimizer, Training


class Prepare(Section):
    """Turn a user's images and captions into checked webdataset shards with a manifest."""

    source: Literal["auto", "table", "coco", "karpathy", "folder", "classes", "webdataset", "datacompdr"] = "auto"
    """How the input is laid out; `auto` looks at what is there."""
    table: str = "captions.jsonl"
    """Caption table inside the input folder (.jsonl, .csv, .tsv, .parquet, .txt or COCO's .json); where there is none
    of this default name, every table below the folder with columns for images and captions is read."""
    columns: dict[str, str] = {}
    """Columns of a table by what they hold (`image`, `captions`, `split`, `license`), where they have unusual names."""
    image_folder: str = ""
    """Folder inside the input folder that a table's image names are relative to; empty = the table's folder, the
    input folder, its `images`, or the only file of that name."""
    label_prompt: Annotated[str, Field(pattern=r"\{\}")] = "a photo of {}"
    """Caption of images in class folders, with `{}` for the class."""
    follow_links: bool = False
    """Read links that lead out of the input folder, and linked folders; off: each is quarantined."""
    license: str = "unknown"
    """License of pictures and captions that do not name their own (SPDX identifier or a name)."""
    validation_share: Share = 0.05
    """Share of groups that go to the validation split, for samples that name no split."""
    test_share: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """The same for the test split; -1 = `validation_share`."""
    group_field: str = "group_key"
    """Samples with the same value of this field never lie in two splits; absent: the uid."""
    duplicates: Literal["drop", "merge"] = "drop"
    """Captions of a picture whose bytes were there before: left out, or added to the first one's."""
    layout: str = ""
    """Whose embeddings a DataCompDR source holds: `datacompdr`, `dfndr`; empty = its `reinforcement.json` says it."""
    check_sha256: bool = False
    """Quarantine pictures whose bytes are not those of their `sha256` field (only where nothing re-encoded them)."""
    near_duplicates: bool = False
    """Report pictures that look alike (difference hash), also across splits; none is left out."""
    near_distance: Annotated[int, Field(ge=0, le=8)] = 3
    """Largest distance of two pictures in that report [bits of 64]."""
    shard_samples: PositiveInt = 1000
    """Samples per shard."""
    shard_bytes: PositiveInt = 500_000_000
    """Most bytes of pictures per shard; a single larger picture has a shard of its own [bytes]."""
    max_pixels: Annotated[int, Field(ge=1, le=89_000_000)] = 50_000_000  # Pillow's own limit lies just above
    """Larger pictures are quarantined [pixels]."""
    svg_size: Annotated[int, Field(ge=16, le=4096)] = 512
    """Longer side of drawings (SVG), which are rendered and stored as PNG [pixels]."""
    max_inflation: Annotated[float, Field(ge=1)] = 50.0
    """A compressed file may grow by this factor, or to 64 MiB; a tar beyond it is quarantined."""
    max_bad_share: Share = 0.01
    """The stage fails when more than this share of the samples had to be quarantined."""


class Filter(Section):
    """Score image-text pairs with a CLIP model and keep the best as a selection column (DFN-style)."""

    enabled: bool = True
    """Off: nothing is scored and every pair is kept."""
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


class Caption(Section):
    """Write M synthetic captions per image as a caption column."""

    enabled: bool = True
    """Off: no captions are written; `reinforce.captions` and `distill.synthetic` are empty then."""
    name: Name = "coca"
    """Name of the caption column."""
    model: str = "trained"
    """Captioner: `trained` (the `captioner` input), an open_clip CoCa name, `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag, where `model` is an open_clip name."""
    num_captions: PositiveInt = 5
    """Captions per image (M); the papers use 5, two bring most of the gain."""
    method: Literal["top_p", "top_k", "greedy", "beam", "beam_logits"] = "top_p"
    """How tokens are chosen; `beam` gives the likeliest captions of one search, `beam_logits` those of open_clip's."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass kept by `top_p`."""
    top_k: PositiveInt = 50
    """Tokens kept by `top_k`."""
    num_beams: Annotated[int, Field(ge=2)] = 6
    """Hypotheses kept by `beam` and `beam_logits`, at least `num_captions`."""
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
        if self.name in TAKEN_COLUMNS:
            raise ValueError(f"name is '{self.name}', want another one: the dataset has a column of that name")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> "Caption":
        if max(self.min_tokens, 1) >= self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, want less than max_tokens ({self.max_tokens})")
        if self.method == "greedy" and self.num_captions > 1:
            raise ValueError(f"num_captions is {self.num_captions}, want 1: greedy captions of one image are all equal")
        if self.method.startswith("beam") and self.num_captions > self.num_beams:
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
    """Views, or texts, per forward pass at most; halved where memory does not suffice."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the teachers; bfloat16 (autocast) is for GPUs."""
    workers: NonNegativeInt = 2
    """Threads that decode and augment ahead of the teachers; they change no result."""
    splits: list[Split] = ["train"]
    """Splits to reinforce."""
    seed: NonNegativeInt = 0
    """Seed of the views, together with uid and view index."""


class Calibrate(Section):
    """Search the teachers' logit scales on stored embeddings alone."""

    enabled: bool = True
    """Off: keep each teacher's own logit scale, or the one given."""
    given: dict[str, PositiveFloat] = {}
    """Scale by teacher, taken where the search is off."""
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
    student: str = ""
    """Student of short runs that check the search, scored on the validation split; empty = search alone."""
    student_factors: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 0.7, 1.0, 1.4, 2.0]
    """Multiples of the scales found at which the ensemble is tried; every teacher alone is tried at its own scale."""
    student_training: Training = Training(
        steps=300, batch_size=256, optimizer=Optimizer(warmup_steps=30), checkpoint_every=0
    )
    """Length and step size of each short run."""
    caption_field: Name = "captions"
    """Ground-truth caption field of the short runs."""
    synthetic: list[Name] = []
    """Caption columns used beside the ground truth in the short runs."""
