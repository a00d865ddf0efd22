"""Stored teacher embeddings as a bank that every student feature is compared with, and the space they share.

A batch of 128 pairs shows a student 128 columns of its teachers' affinities. The reinforced dataset holds the teachers'
embeddings of every view and caption, so an affinity with thousands of columns costs a matrix product and no forward
pass (SEED, Fang et al., arXiv 2101.04731; there the columns are a queue of one image teacher's outputs).

The bank's rows must lie in the student's own space, or there would be nothing to compare its features with. So the
teachers are joined into one embedding e = [sqrt(s_k / sum s) u_k] over teachers k of scale s_k, whose scaled cosine
is the mean of the teachers' scaled cosines: s e.e' = mean_k s_k u_k.u_k' with s = mean_k s_k. The principal
directions V of the bank, not centered, compress it to the student's width: P(e) = e V / |e V| keeps as much of e.e'
as that width can (Eckart and Young). A student with f = P(e) of every image and text ranks as its teachers do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.columns import ColumnReader
from mobileclip.data.embeddings import decode_all
from mobileclip.manifest import Manifest, Shard


@dataclass(frozen=True)
class Bank:
    """The teachers' joint embeddings of many images and texts, whole and compressed.

    Attributes:
        scales: Logit scale of each teacher, 1 / temperature.
        directions: V [joint width, student's width].
        images: Joint embeddings of stored views, unit-norm [images, joint width].
        texts: Joint embeddings of different captions, unit-norm [texts, joint width].
    """

    scales: tuple[float, ...]
    directions: Tensor
    images: Tensor
    texts: Tensor

    @property
    def scale(self) -> float:
        """Logit scale of the joint embedding: the mean of the teachers'."""
        return sum(self.scales) / len(self.scales)

    @cached_property
    def columns(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of images, then of texts: the joint embeddings, and compressed."""
        return tuple((side, self.compress(side)) for side in (self.images, self.texts))

    def join(self, teachers: Sequence[Tensor]) -> Tensor:
        """Per teacher unit-norm [rows, dim_k] to the joint embedding, unit-norm [rows, joint width]."""
        return join_teachers(teachers, self.scales)

    def compress(self, joint: Tensor) -> Tensor:
        """P: joint embeddings to the student's width, unit-norm [rows, width]."""
        return F.normalize(joint @ self.directions, dim=1)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Bank":
        """The same bank there."""
        moved = {name: getattr(self, name).to(device, dtype) for name in ("directions", "images", "texts")}
        return replace(self, **moved)


def join_teachers(teachers: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """One embedding for all teachers, whose scaled cosines are the mean of theirs; unit-norm [rows, joint width]."""
    total = sum(scales)
    return torch.cat([(scale / total) ** 0.5 * own for own, scale in zip(teachers, scales, strict=True)], dim=1)


def bank_loss(features: Tensor, joint: Tensor, bank: Bank, *, total: int) -> Tensor:
    """KL(teachers || student) of the affinities to the bank's images and to its texts, mean of both.

    Args:
        features: The student's, of images or of texts, unit-norm [rows, width].
        joint: The teachers' joint embeddings of the same, unit-norm [rows, joint width].
        bank: Whose rows are the columns of both affinities.
        total: Rows of the whole batch; the value is the share of these rows.

    Returns:
        Scalar, >= 0.
    """
    value = features.new_zeros(())
    for whole, compressed in bank.columns:
        wanted = F.log_softmax(bank.scale * joint @ whole.T, dim=1)
        found = F.log_softmax(bank.scale * features @ compressed.T, dim=1)
        value = value + F.kl_div(found, wanted, log_target=True, reduction="sum")
    return value / (2 * total)


def bank_divergence(features: Mapping[str, Tensor], joint: Mapping[str, Tensor], bank: Bank, *, total: int) -> Tensor:
    """`bank_loss` of images and of texts, half each: texts weigh as much as images, however many kinds there are.

    Args:
        features: The student's by name, `image` and one or more kinds of texts.
        joint: The teachers' joint embeddings by the same names.
        bank: See `bank_loss`.
        total: See `bank_loss`.
    """
    texts = [bank_loss(features[name], own, bank, total=total) for name, own in joint.items() if name != "image"]
    return bank_loss(features["image"], joint["image"], bank, total=total) / 2 + sum(texts) / (2 * len(texts))


def principal_directions(images: Tensor, texts: Tensor, width: int) -> Tensor:
    """Eigenvectors of the mean outer product, images and texts weighing alike, largest first.

    Args:
        images: [images, joint width].
        texts: [texts, joint width].
        width: Directions wanted; those beyond the joint width are zero.

    Returns:
        float32 [joint width, width], orthonormal columns.
    """
    moment = sum(part.double().T @ part.double() / len(part) for part in (images, texts))
    vectors = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :width]
    # The sign of an eigenvector is the library's choice: the largest entry is made positive.
    signs = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    return F.pad(vectors * signs, (0, width - vectors.shape[1])).float()


def read_bank(
    folder: str, content: Manifest, scales: Mapping[str, float], *, columns: Sequence[str], width: int, size: int,
    seed: int, selection: bool = True,
) -> Bank:  # fmt: skip
    """Draw a bank from the stored embeddings of the training split.

    Args:
        folder: Reinforced dataset.
        content: Its manifest.
        scales: Logit scale by teacher, in the ensemble's order.
        columns: Text columns whose embeddings join the bank: `captions` and those of captioners.
        width: The student's embedding width.
        size: Most images, and most texts; equal texts count once.
        seed: Seed of the draw.
        selection: Leave out the samples that the filter dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    shards = content.split("train")
    samples = sum(shard.samples for shard in shards)
    images, texts = [], []
    for shard in shards:
        quota = -(-size * shard.samples // samples)  # shard by shard, so that a large dataset is never in memory
        kept = _kept(folder, content, shard) if selection and content.has("selection") else None
        images.append(_drawn(_joint(folder, content, shard, "views", scales, kept), quota, generator))
        spoken = [_joint(folder, content, shard, name, scales, kept) for name in columns]
        texts.append(_drawn(torch.unique(torch.cat(spoken), dim=0), quota, generator))
    image = _drawn(torch.cat(images), size, generator)
    text = _drawn(torch.unique(torch.cat(texts), dim=0), size, generator)
    return Bank(tuple(scales.values()), principal_directions(image, text, width), image, text)


def _joint(
    folder: str, content: Manifest, shard: Shard, kind: str, scales: Mapping[str, float], kept: Tensor | None
) -> Tensor:
    """Joint embeddings of all stored rows of one kind in one shard."""
    parts = []
    for name in scales:
        features, ends = decode_all(ColumnReader(folder, content.column(f"{name}.{kind}"), shard))
        if kept is not None:
            features = features[kept.repeat_interleave(ends.diff())]
        parts.append(features)
    return join_teachers(parts, tuple(scales.values()))


def _kept(folder: str, content: Manifest, shard: Shard) -> Tensor | None:
    column = content.column("selection")
    if shard.name not in column.parts:
        return None
    return ColumnReader(folder, column, shard).all("keep").bool()


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]
