"""The published MobileCLIP and MobileCLIP2 models, for context beside one's own: figures of the papers, not ours.

Latency: iPhone 12 Pro Max, iOS 17.0.3, Core ML Tools 7.0, batch 1. Accuracy: zero-shot top-1 on ImageNet-1k. Sources:
arXiv 2311.17049, arXiv 2508.20691 and the models' page; the text tower of MobileCLIP2-S0 as its configuration has it
(the page repeats that of MobileCLIP-S0).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        name: Its name without the family.
        family: `MobileCLIP` or `MobileCLIP2`.
        image_ms: Latency of the image tower in milliseconds.
        text_ms: Latency of the text tower in milliseconds.
        top1: ImageNet-1k zero-shot top-1, 0 to 1.
        average: Mean of the 38 tasks of the DataComp suite, 0 to 1.
    """

    name: str
    family: str
    image_ms: float
    text_ms: float
    top1: float
    average: float

    @property
    def latency_ms(self) -> float:
        """Both towers."""
        return self.image_ms + self.text_ms


_V1, _V2 = "MobileCLIP", "MobileCLIP2"
MODELS: tuple[Published, ...] = (
    Published("S0", _V1, 1.5, 1.6, 0.678, 0.581),
    Published("S1", _V1, 2.5, 3.3, 0.726, 0.613),
    Published("S2", _V1, 3.6, 3.3, 0.744, 0.637),
    Published("B", _V1, 10.4, 3.3, 0.768, 0.652),
    Published("B (LT)", _V1, 10.4, 3.3, 0.772, 0.658),
    Published("S3", _V1, 8.0, 6.6, 0.783, 0.663),
    Published("L/14", _V1, 57.9, 6.6, 0.795, 0.669),
    Published("S4", _V1, 19.6, 6.6, 0.794, 0.681),
    Published("S0", _V2, 1.5, 3.3, 0.715, 0.597),
    Published("S2", _V2, 3.6, 3.3, 0.772, 0.641),
    Published("B", _V2, 10.4, 3.3, 0.794, 0.658),
    Published("S3", _V2, 8.0, 6.6, 0.807, 0.668),
    Published("L/14", _V2, 57.9, 6.6, 0.819, 0.678),
    Published("S4", _V2, 19.6, 6.6, 0.819, 0.675),
)
