"""What a reinforced dataset costs before it is made: GPU-hours, storage, shards and groups, and when it pays.

Times per sample come from the one table of them that MobileCLIP prints (arXiv 2311.17049: an epoch of 12.8 million
samples on eight A100 takes 1.3 h with plain CLIP, 4.1 h with stored captions and online teachers, 21.1 h with an online
captioner too; two ViT-L/14 teachers embed a view, the caption and a synthetic caption of each sample), shared out
between towers by their multiplications, or from a probe of this machine (`mobileclip.planning.probe`). It is an
estimate: within a factor of two on other hardware, and a captioner with a key-value cache is faster than the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from mobileclip.config import Params
from mobileclip.errors import ConfigError

_SAMPLES, _GPUS = 12.8e6, 8
_PLAIN, _TEACHERS, _ALL = 1.3, 4.1, 21.1  # hours of an epoch
_IMAGE_SHARE = 0.86  # of a ViT-L/14's work on one view and two texts: 162 of 188 GFLOP
_MS = 3.6e6 * _GPUS / _SAMPLES  # an hour of the eight, as milliseconds of one per sample

GPUS: dict[str, float] = {
    "A100": 1.0,
    "H100": 2.0,  # MobileCLIP2 used 128 H100 in place of 256 A100
    "H200": 2.2,
    "L40S": 0.9,
    "A10G": 0.35,
    "L4": 0.3,
    "V100": 0.35,
    "T4": 0.18,
    "RTX4090": 0.6,
}
"""Speed relative to an A100: A100 and H100 from the papers, the others scaled by half-precision peak and bandwidth."""

MAX_GROUPS = 100
_GROUP_HOURS = 1.0  # work of a group: short enough to lose to a preemption, long enough to load its models
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_PICTURE = 70e3  # of DataComp-12M with its text [bytes]
_VIEW, _CAPTION = 32, 72  # a view's eight integers; a caption and its offset [bytes]


@dataclass(frozen=True)
class Rates:
    """Time of one GPU for one item [ms].

    Attributes:
        image: A teacher embeds a view.
        text: A teacher embeds a text.
        caption: The captioner writes a caption.
        student: A step of plain CLIP training, per sample.
        source: Where the figures come from.
    """

    image: float
    text: float
    caption: float
    student: float
    source: str


PAPER = Rates(
    image=(_TEACHERS - _PLAIN) * _MS / 2 * _IMAGE_SHARE,
    text=(_TEACHERS - _PLAIN) * _MS / 2 * (1 - _IMAGE_SHARE) / 2,
    caption=(_ALL - _TEACHERS) * _MS,
    student=_PLAIN * _MS,
    source="MobileCLIP's table of training times, A100",
)


@dataclass(frozen=True)
class Demand:
    """What is to be made.

    Attributes:
        samples: Image-text pairs.
        views: Stored views per picture.
        captions: Synthetic captions per picture.
        teachers: Number of teachers.
        dims: Width of each teacher's embeddings.
        dtype: Stored type of embeddings.
        shard_samples: Samples per shard.
        picture_bytes: A picture with its text [bytes].
    """

    samples: int
    views: int
    captions: int
    teachers: int
    dims: int = 768
    dtype: str = "float16"
    shard_samples: int = 1000
    picture_bytes: float = _PICTURE

    def __post_init__(self) -> None:
        for name in ("samples", "views", "teachers", "dims", "shard_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, want at least 1.")
        if self.captions < 0:
            raise ConfigError(f"captions: got {self.captions}, want 0 or more.")


@dataclass(frozen=True)
class Plan:
    """What it costs.

    Attributes:
        caption_hours: Writing captions [GPU-hours].
        embed_hours: Embedding views and texts [GPU-hours].
        base_bytes: Pictures and their texts [bytes].
        added_bytes: Views, captions and embeddings [bytes].
        embedding_bytes: Of it, embeddings per sample [bytes].
        shards: Shards.
        groups: Shares of the work for a pipeline run.
        group_hours: Largest share, captions and embeddings [GPU-hours].
        wall_hours: With all GPUs busy [h].
        epoch_stored: An epoch of training from the stored dataset [GPU-hours].
        epoch_online: The same with teachers that run along [GPU-hours].
        epoch_all_online: The same with a captioner, too [GPU-hours].
        break_even: Epochs after which stored embeddings cost less than online teachers, captions stored in both cases.
        break_even_all: Epochs after which everything stored costs less than everything online.
    """

    caption_hours: float
    embed_hours: float
    base_bytes: float
    added_bytes: float
    embedding_bytes: int
    shards: int
    groups: int
    group_hours: float
    wall_hours: float
    epoch_stored: float
    epoch_online: float
    epoch_all_online: float
    break_even: float
    break_even_all: float


def demand_of(params: Params, samples: int) -> Demand:
    """What a params file asks for.

    Args:
        params: Sections `prepare`, `caption` and `reinforce` count.
        samples: Image-text pairs.
    """
    captions = params.caption.num_captions * len(params.reinforce.captions)
    return Demand(
        samples=samples,
        views=params.reinforce.views.num_views,
        captions=captions,
        teachers=len(params.reinforce.teachers),
        dtype=params.reinforce.dtype,
        shard_samples=params.prepare.shard_samples,
    )


def plan(demand: Demand, *, gpus: int = 8, speed: float = 1.0, rates: Rates = PAPER) -> Plan:
    """Compute the cost.

    Args:
        demand: What is to be made.
        gpus: Number of GPUs.
        speed: Of one, relative to the one that `rates` were measured on.
        rates: Time per item.

    Raises:
        ConfigError: `gpus` or `speed` is not positive.
    """
    if gpus < 1 or speed <= 0:
        raise ConfigError(f"gpus: got {gpus} of speed {speed:g}, want at least one that computes.")
    texts = 1 + demand.captions
    hour = 3.6e6 * speed / demand.samples  # ms per sample of a GPU-hour
    captions = demand.captions * rates.caption / hour
    embed = demand.teachers * (demand.views * rates.image + texts * rates.text) / hour
    # Online, a step sees one view, the caption and a synthetic one.
    online = demand.teachers * (rates.image + min(2, texts) * rates.text) / hour
    online_caption = min(1, demand.captions) * rates.caption / hour
    embedding = (demand.views + texts) * demand.teachers * _row_bytes(demand)
    shards = -(-demand.samples // demand.shard_samples)
    groups = min(max(10, math.ceil((captions + embed) / _GROUP_HOURS)), MAX_GROUPS, shards)
    stored = rates.student / hour
    return Plan(
        caption_hours=captions,
        embed_hours=embed,
        base_bytes=demand.samples * demand.picture_bytes,
        added_bytes=demand.samples * float(embedding + demand.views * _VIEW + demand.captions * _CAPTION),
        embedding_bytes=embedding,
        shards=shards,
        groups=groups,
        group_hours=(captions + embed) * -(-shards // groups) / shards,
        wall_hours=(captions + embed) / gpus,
        epoch_stored=stored,
        epoch_online=stored + online,
        epoch_all_online=stored + online + online_caption,
        break_even=embed / online,
        break_even_all=(captions + embed) / (online + online_caption),
    )


def settings(demand: Demand) -> dict[str, Demand]:
    """The demand, and the paper's smaller settings: views saturate at about five, captions at two (section 5)."""
    found = {"as asked": demand}
    for views, captions in ((5, 5), (2, 2)):
        if (views, captions) != (demand.views, demand.captions) and views <= demand.views:
            fewer = min(captions, demand.captions)
            found[f"{views} views, {fewer} captions"] = replace(demand, views=views, captions=fewer)
    if demand.teachers > 1:
        found["one teacher"] = replace(demand, teachers=1)
    return found


def as_json(demand: Demand, result: Plan, rates: Rates) -> dict[str, object]:
    """Everything, as plain values."""
    return {"demand": asdict(demand), "plan": asdict(result), "rates": asdict(rates)}


def rows(results: Sequence[Plan]) -> list[tuple[str, ...]]:
    """Rows of a table with one column per plan; the first cell names the row and its unit."""
    lines: list[tuple[str, list[str]]] = [
        ("captions [GPU-h]", [f"{p.caption_hours:,.1f}" for p in results]),
        ("views and embeddings [GPU-h]", [f"{p.embed_hours:,.1f}" for p in results]),
        ("wall time [h]", [f"{p.wall_hours:,.1f}" for p in results]),
        ("embeddings per sample [KB]", [f"{p.embedding_bytes / 1e3:,.1f}" for p in results]),
        ("storage: pictures [GB]", [f"{p.base_bytes / 1e9:,.1f}" for p in results]),
        ("storage: added [GB]", [f"{p.added_bytes / 1e9:,.1f}" for p in results]),
        ("shards", [f"{p.shards:,}" for p in results]),
        ("groups of a run", [f"{p.groups:,}" for p in results]),
        ("one group [GPU-h]", [f"{p.group_hours:,.2f}" for p in results]),
        ("epoch, all stored [GPU-h]", [f"{p.epoch_stored:,.1f}" for p in results]),
        ("epoch, teachers online [GPU-h]", [f"{p.epoch_online:,.1f}" for p in results]),
        ("epoch, all online [GPU-h]", [f"{p.epoch_all_online:,.1f}" for p in results]),
        ("pays after epochs, against online teachers", [f"{p.break_even:,.1f}" for p in results]),
        ("pays after epochs, against all online", [f"{p.break_even_all:,.1f}" for p in results]),
    ]
    return [(name, *cells) for name, cells in lines]


def _row_bytes(demand: Demand) -> int:
    scale = 2 if demand.dtype == "int8" else 0  # int8 stores a float16 scale per vector
    return demand.dims * _BYTES[demand.dtype] + scale
