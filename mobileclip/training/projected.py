"""A student beside a linear map to each teacher's width: the feature term of CLIP-KD (arXiv 2307.12732)."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from mobileclip.training.losses import feature_loss


class Projected(nn.Module):
    """A student with a linear map of its embeddings to each teacher's width; the maps are thrown away in the end."""

    def __init__(self, model: nn.Module, width: int, teachers: Mapping[str, int]) -> None:
        """Wrap `model`, whose embeddings are `width` wide, for teachers by name and width."""
        super().__init__()
        self.student = model
        self.maps = nn.ModuleDict({_key(name): nn.Linear(width, wide, bias=False) for name, wide in teachers.items()})

    @property
    def logit_scale(self) -> Tensor:  # type: ignore[override]
        """The student's."""
        return self.student.logit_scale  # type: ignore[return-value]

    def distance(
        self, features: Mapping[str, Tensor], teachers: Mapping[str, Sequence[Tensor]], *,
        kind: Literal["cosine", "mse"], total: int,
    ) -> Tensor:  # fmt: skip
        """Mean over images and kinds of captions of the distance to the teachers' features, this process's share.

        Args:
            features: The student's by name [rows, width].
            teachers: By the same names, per teacher [rows, dim_k].
            kind: See `feature_loss`.
            total: Rows of the whole batch.
        """
        parts = []
        for name, targets in teachers.items():
            projected = [linear(features[name]) for linear in self.maps.values()]
            parts.append(feature_loss(projected, targets, kind=kind, total=total))
        return sum(parts, features["image"].new_zeros(())) / len(parts)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's name must hold no dot
