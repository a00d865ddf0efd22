"""Samples for training: deterministic order, draws by (seed, epoch, uid) alone, rows read where they lie."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mobileclip.config import Views
from mobileclip.data.augment import apply_view, draw_views
from mobileclip.data.columns import ColumnReader, unpack_texts
from mobileclip.data.images import decode, resize
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError
from mobileclip.manifest import Manifest, Shard
from mobileclip.models.zoo import Preprocess

Item = dict[str, torch.Tensor]
Place = tuple[int, int]
"""(epoch, position in the split)."""


@dataclass(frozen=True)
class Recipe:
    """What a training run reads of each sample.

    Attributes:
        preprocess: The model's input size and interpolation (pixels stay uint8, the model normalizes).
        tokenizer: Texts to int64 [n, context].
        caption_field: Ground-truth field; one caption is drawn.
        synthetic: Caption columns; one caption of one of them is drawn.
        teachers: Teachers whose embeddings are read; empty = none.
        views: `stored` replays a view of the view column, a `Views` spec draws fresh ones, `whole` takes the picture.
        selection: Leave out what the filter dropped.
        seed: Seed of the draws.
        more_fields: Further fields whose captions join the draw; not with teachers, whose embeddings are of one field.
    """

    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    caption_field: str = "captions"
    synthetic: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    views: Views | str = "stored"
    selection: bool = True
    seed: int = 0
    more_fields: tuple[str, ...] = ()


class PairDataset(Dataset[Item]):
    """Image-text pairs of some splits, with all that reinforcement added.

    An item has `image` uint8 [3, size, size], `text` int64 [context] and, as the recipe says, `synthetic_text`,
    `teacher_image.NAME`, `teacher_text.NAME`, `teacher_synthetic.NAME` float32 [dim].
    """

    def __init__(self, folder: str, manifest: Manifest, recipe: Recipe, *, splits: Sequence[str] = ("train",)) -> None:
        """Open the shards and columns of these splits.

        Raises:
            DataError: A column is missing, or no sample is left.
        """
        self._recipe = recipe
        self._shards = manifest.split(*splits)
        if not self._shards:
            raise DataError(f"data: no shard of split {', '.join(splits)} in '{folder}'.")
        self._readers = [ShardReader(folder, shard) for shard in self._shards]
        names = _columns(manifest, recipe)
        self._columns = {
            name: [ColumnReader(folder, manifest.column(name), shard) for shard in self._shards] for name in names
        }
        self._places = _places(folder, manifest, self._shards, self._readers, recipe)
        if not self._places:
            raise DataError(f"data: no sample with a '{recipe.caption_field}' caption is left in '{folder}'.")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._places)

    def __getitem__(self, place: Place) -> Item:
        """The sample at (epoch, position), with that epoch's draws."""
        epoch, position = place
        shard, row = self._places[position]
        sample = self._readers[shard].sample(row)
        rng = _generator(self._recipe.seed, epoch, sample.uid)
        image = decode(sample.image)
        item: Item = {}
        captions = _captions(sample.metadata, self._recipe)
        view = int(rng.integers(2**31))
        choice = int(rng.integers(len(captions)))
        item["image"], view_row = self._image(image, sample.uid, epoch, shard, row, view)
        texts = [captions[choice]]
        if self._recipe.synthetic:
            name = self._recipe.synthetic[int(rng.integers(len(self._recipe.synthetic)))]
            synthetic = unpack_texts(self._columns[name][shard], row)
            index = int(rng.integers(len(synthetic)))
            texts.append(synthetic[index])
        for teacher in self._recipe.teachers:
            item[f"teacher_image.{teacher}"] = _embedding(self._columns[f"{teacher}.views"][shard], row, view_row)
            item[f"teacher_text.{teacher}"] = _embedding(self._columns[f"{teacher}.captions"][shard], row, choice)
            if self._recipe.synthetic:
                item[f"teacher_synthetic.{teacher}"] = _embedding(self._columns[f"{teacher}.{name}"][shard], row, index)
        tokens = self._recipe.tokenizer(texts)
        item["text"] = tokens[0]
        if self._recipe.synthetic:
            item["synthetic_text"] = tokens[1]
        return item

    def _image(self, image: Any, uid: str, epoch: int, shard: int, row: int, draw: int) -> tuple[torch.Tensor, int]:
        pre, views = self._recipe.preprocess, self._recipe.views
        if views == "whole":
            return resize(image, pre.size, pre.interpolation), 0
        if isinstance(views, Views):
            one = views.model_copy(update={"num_views": 1})
            seed = self._recipe.seed * 1_000_003 + epoch
            rows = draw_views(one, uid=uid, seed=seed, width=image.width, height=image.height)
            return apply_view(image, rows[0], size=pre.size, interpolation=pre.interpolation), 0
        stored = self._columns["views"][shard].row("views", row).numpy()
        index = draw % len(stored)
        return apply_view(image, stored[index], size=pre.size, interpolation=pre.interpolation), index


def batches(
    dataset: PairDataset, *, batch_size: int, first_step: int, last_step: int, seed: int, workers: int
) -> Iterator[Item]:
    """Batches of steps `first_step`..`last_step` - 1.

    The order is a function of (seed, number of samples): epochs are permutations laid end to end and cut into batches,
    so a run that starts at step s sees exactly what an unbroken run sees from there. Workers change nothing.
    """
    loader: DataLoader[Item] = DataLoader(
        dataset,
        batch_sampler=_Steps(len(dataset), batch_size, first_step, last_step, seed),  # type: ignore[arg-type]
        num_workers=workers,
        # Its own generator: else opening a loader would move torch's, and a resumed run would draw other dropout masks.
        generator=torch.Generator().manual_seed(seed),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )
    return iter(loader)


@dataclass(frozen=True)
class _Steps:
    """The places of steps `first`..`last` - 1, planned as they come: a long run has billions."""

    samples: int
    batch_size: int
    first: int
    last: int
    seed: int

    def __iter__(self) -> Iterator[list[Place]]:
        return (place_batch(self.samples, self.batch_size, step, self.seed) for step in range(self.first, self.last))


def place_batch(samples: int, batch_size: int, step: int, seed: int) -> list[Place]:
    """(epoch, position) of every sample of one step."""
    places: list[Place] = []
    start = step * batch_size
    while len(places) < batch_size:
        epoch, offset = divmod(start + len(places), samples)
        order = _permutation(samples, epoch, seed)
        places += [(epoch, int(p)) for p in order[offset : offset + batch_size - len(places)]]
    return places


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(samples: int, epoch: int, seed: int) -> np.ndarray:
    key = (samples, epoch, seed)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 4:
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch]).permutation(samples)
    return _PERMUTATIONS[key]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _generator(seed: int, epoch: int, uid: str) -> np.random.Generator:
    key = hashlib.sha256(f"pair|{seed}|{epoch}|{uid}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def _captions(metadata: Mapping[str, Any], recipe: Recipe) -> list[str]:
    values = [metadata.get(field) or [] for field in (recipe.caption_field, *recipe.more_fields)]
    return [text for value in values for text in ([value] if isinstance(value, str) else value)]


def _columns(manifest: Manifest, recipe: Recipe) -> list[str]:
    names = [*recipe.synthetic]
    if recipe.views == "stored":
        names.append("views")
    for teacher in recipe.teachers:
        names += [f"{teacher}.{kind}" for kind in ("views", "captions", *recipe.synthetic)]
    for name in names:
        manifest.column(name)
    for teacher in recipe.teachers:
        stored = manifest.column(f"{teacher}.captions").spec.get("field", recipe.caption_field)
        if (stored, ()) != (recipe.caption_field, recipe.more_fields):
            wanted = ", ".join((recipe.caption_field, *recipe.more_fields))
            raise DataError(
                f"data: teacher '{teacher}' has embeddings of the field '{stored}', the training reads '{wanted}'."
            )
    return names


def _places(
    folder: str, manifest: Manifest, shards: Sequence[Shard], readers: Sequence[ShardReader], recipe: Recipe
) -> list[tuple[int, int]]:
    """(shard, row) of every sample that is selected and has the caption field."""
    found = []
    selected = recipe.selection and manifest.has("selection")
    for index, (shard, reader) in enumerate(zip(shards, readers, strict=True)):
        keep: torch.Tensor | None = None
        if selected and shard.name in manifest.column("selection").parts:
            keep = ColumnReader(folder, manifest.column("selection"), shard).all("keep")
        for row in range(len(reader)):
            if keep is not None and not keep[row]:
                continue
            if recipe.caption_field != "captions" and not _captions(reader.sample(row).metadata, recipe):
                continue
            found.append((index, row))
    return found


def _embedding(reader: ColumnReader, row: int, index: int) -> torch.Tensor:
    """One stored vector as float32 (see `mobileclip.data.embeddings` for the encodings)."""
    from mobileclip.data.embeddings import decode_row

    return decode_row(reader, row, index)


def collate_teachers(batch: Mapping[str, torch.Tensor], kind: str, teachers: Sequence[str]) -> list[torch.Tensor]:
    """Per teacher the [batch, dim] embeddings of `image`, `text` or `synthetic`."""
    return [batch[f"teacher_{kind}.{teacher}"] for teacher in teachers]
