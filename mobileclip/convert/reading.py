"""How a public set is to be read."""

from dataclasses import dataclass

from mobileclip.config.base import Dtype


@dataclass(frozen=True)
class Reading:
    """How to read a set.

    Attributes:
        layout: Preset, file, or empty for the `reinforcement.json` beside the tars.
        images: Pictures to join by uid: tars or a prepared dataset; empty = those within the tars.
        with_images: Off: keep captions and vectors alone (enough to calibrate, not to train).
        dtype: Storage type of the vectors.
        license: License of pictures and captions that name none.
        validation_share: Share of the samples, by hash of uid, in the validation split.
        shard_samples: Most samples per shard; a tar becomes one shard or several.
        min_coverage: Smallest share of the rows that must find their picture.
        max_pixels: Larger pictures are left out.
        same_bytes: Leave out pictures whose bytes are not those of the recorded sha256.
    """

    layout: str = ""
    images: str = ""
    with_images: bool = True
    dtype: Dtype = "float16"
    license: str = "unknown"
    validation_share: float = 0.0
    shard_samples: int = 1000
    min_coverage: float = 0.0
    max_pixels: int = 50_000_000
    same_bytes: bool = False
