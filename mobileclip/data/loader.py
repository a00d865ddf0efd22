"""Samples for training: deterministic order, draws by (seed, epoch, uid) alone, rows read where they lie."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mobileclip.config import Views
from mobileclip.data.augment import OPS, apply_operation, apply_view, draw_views, magnitude
from mobileclip.data.columns import ColumnReader, check_files, unpack_texts
from mobileclip.data.images import decode, resize, to_tensor
from mobileclip.data.mapped import MAPS, Readers
from mobileclip.data.order import WHOLE, Place, Rows, Steps, place_batch
from mobileclip.data.preprocess import Preprocess
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError, EmptyError
from mobileclip.manifest import Manifest, Shard
from mobileclip.stopping import undisturbed

__all__ = ["Item", "PairDataset", "Recipe", "TeacherInput", "batches", "collate_teachers", "place_batch"]

Item = dict[str, torch.Tensor]

_TOKENIZED = 100_000
"""Texts whose tokens a dataset keeps."""
_MANY = 2**31
_KINDS = {"text": "text", "synthetic_text": "synthetic"}


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
        mix: Probability with which a synthetic caption takes the ground truth's place; None = both are given.
        sequential: Views and captions of a sample follow each other by epoch, from a drawn one on; else drawn anew.
        extra_augment: RandAugment operations after the view and their strength bin, for the student alone.
        online: Teachers that run in the step: their inputs are prepared from the same view and captions.
        use_views: The first n stored views are used; 0 = all.
        use_captions: The first n synthetic captions of each captioner are used; 0 = all.
    """

    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    caption_field: str = "captions"
    synthetic: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    views: Views | Literal["stored", "whole"] = "stored"
    selection: bool = True
    seed: int = 0
    more_fields: tuple[str, ...] = ()
    mix: float | None = None
    sequential: bool = False
    extra_augment: tuple[int, int] = (0, 0)
    online: tuple["TeacherInput", ...] = ()
    use_views: int = 0
    use_captions: int = 0


@dataclass(frozen=True)
class TeacherInput:
    """What a teacher reads that runs in the step: its name, preprocessing and tokenizer."""

    name: str
    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], torch.Tensor]


class PairDataset(Dataset[Item]):
    """Image-text pairs of some splits, with all that reinforcement added.

    An item has `image` uint8 [3, size, size], `text` int64 [context] and, as the recipe says, `synthetic_text`,
    `teacher_image.NAME`, `teacher_text.NAME`, `teacher_synthetic.NAME` float32 [dim]; for teachers that run in the
    step `online_image.NAME` uint8 and `online_text.NAME`, `online_synthetic.NAME` int64.
    """

    def __init__(self, folder: str, manifest: Manifest, recipe: Recipe, *, splits: Sequence[str] = ("train",)) -> None:
        """Check that the shards and columns of these splits are there; a sample's files are opened at its turn.

        Raises:
            DataError: A column or a file is missing, or a shard is cut.
            EmptyError: No sample is left.
        """
        self._recipe = recipe
        self._tokens: dict[str, torch.Tensor] = {}
        self._shards = manifest.split(*splits)
        if not self._shards:
            raise EmptyError(f"data: no shard of split {', '.join(splits)} in '{folder}'.")
        self._folder = folder
        self._columns = {name: manifest.column(name) for name in _columns(manifest, recipe)}
        # Maps, and with an index as many again: a data set of fewer files stays open.
        self._open: Readers[Any] = Readers(MAPS // 2)
        if len(self._shards) <= WHOLE:  # all are in use from the first step on
            for shard in range(len(self._shards)):
                self._shard(shard)
                for name in self._columns:
                    self._column(name, shard)
        else:
            check_files(folder, self._shards, self._columns.values())
        self._places = _places(folder, manifest, self._shards, self._shard, recipe)
        if not self._places:
            raise EmptyError(f"data: no sample with a '{recipe.caption_field}' caption is left in '{folder}'.")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._places)

    def __getitem__(self, place: Place) -> Item:
        """The sample at (epoch, position), with that epoch's draws."""
        epoch, position = place
        shard, row = self._places[position]
        sample = self._shard(shard).sample(row)
        rng = _generator(self._recipe.seed, epoch, sample.uid)
        draw = _Draw(_generator(self._recipe.seed, -1, sample.uid), epoch) if self._recipe.sequential else _Draw(rng)
        image = decode(sample.image)
        captions = _captions(sample.metadata, self._recipe)
        view, place_of_view = self._view(image, sample.uid, epoch, shard, row, draw.one(_MANY))
        index = draw.one(len(captions))
        texts = {"text": ("captions", index, captions[index])}
        if self._recipe.synthetic:
            texts["synthetic_text"] = self._synthetic(shard, row, draw)
        if self._recipe.synthetic and self._recipe.mix is not None:
            texts = {"text": texts["synthetic_text" if rng.random() < self._recipe.mix else "text"]}
        # Draws of its own: a control that reads no synthetic captions sees the same operations.
        own_rng = _generator(self._recipe.seed, epoch, f"{sample.uid}|extra")
        pixels = _show(image, view, self._recipe.preprocess)
        item: Item = {"image": _extra(pixels, self._recipe.extra_augment, own_rng)}
        for name, (column, index, text) in texts.items():
            item[name] = self._tokenize(text)
            kind = _KINDS[name]
            for teacher in self._recipe.teachers:
                reader = self._column(f"{teacher}.{column}", shard)
                item[f"teacher_{kind}.{teacher}"] = _embedding(reader, row, index)
            for own in self._recipe.online:
                item[f"online_{kind}.{own.name}"] = own.tokenizer([text])[0]
        for teacher in self._recipe.teachers:
            item[f"teacher_image.{teacher}"] = _embedding(self._column(f"{teacher}.views", shard), row, place_of_view)
        for own in self._recipe.online:
            item[f"online_image.{own.name}"] = _show(image, view, own.preprocess)
        return item

    @property
    def starts(self) -> np.ndarray:
        """Position of each shard's first sample, and their number at the end, int64 [shards + 1]."""
        return self._places.starts

    def _shard(self, shard: int) -> ShardReader:
        found: ShardReader = self._open.get(shard, lambda: ShardReader(self._folder, self._shards[shard]))
        return found

    def _column(self, name: str, shard: int) -> ColumnReader:
        def open_one() -> ColumnReader:
            return ColumnReader(self._folder, self._columns[name], self._shards[shard])

        found: ColumnReader = self._open.get((name, shard), open_one)
        return found

    def pairs(self) -> Iterator[tuple[str, list[str]]]:
        """Uid and ground-truth captions of every sample, in order."""
        for shard, row in self._places:
            sample = self._shard(shard).sample(row)
            yield sample.uid, _captions(sample.metadata, self._recipe)

    def _synthetic(self, shard: int, row: int, draw: "_Draw") -> tuple[str, int, str]:
        """Column, index and text of one synthetic caption of one captioner."""
        names = self._recipe.synthetic
        place = draw.nested(len(names), lambda place: len(self._captions_of(names[place], shard, row)))
        name = names[place[0]]
        return name, *self._captions_of(name, shard, row)[place[1]]

    def _captions_of(self, name: str, shard: int, row: int) -> list[tuple[int, str]]:
        """Place and text of the captions that the captioner's check did not flag; all where it flagged all."""
        column = self._column(name, shard)
        captions = list(enumerate(unpack_texts(column, row)))[: self._recipe.use_captions or None]
        stored = column.keys()
        flags = column.row("degenerate", row).tolist() if "degenerate" in stored else []
        return [pair for pair in captions if flags and not flags[pair[0]]] or captions

    def _tokenize(self, text: str) -> torch.Tensor:
        """Tokens of a text; the latest are kept, as a small dataset's captions come back every epoch."""
        found = self._tokens.get(text)
        if found is None:
            found = self._recipe.tokenizer([text])[0]
            if len(self._tokens) >= _TOKENIZED:
                self._tokens.pop(next(iter(self._tokens)))
            self._tokens[text] = found
        return found

    def _view(self, image: Any, uid: str, epoch: int, shard: int, row: int, draw: int) -> tuple[np.ndarray | None, int]:
        """The view to show (`None` = the whole picture) and its place among the stored ones."""
        views = self._recipe.views
        if views == "whole":
            return None, 0
        if isinstance(views, Views):
            one = views.model_copy(update={"num_views": 1})
            seed = self._recipe.seed * 1_000_003 + epoch
            return draw_views(one, uid=uid, seed=seed, width=image.width, height=image.height)[0], 0
        stored = self._column("views", shard).row("views", row).numpy()[: self._recipe.use_views or None]
        return stored[draw % len(stored)], draw % len(stored)


@dataclass(frozen=True)
class _Draw:
    """Chooses one of several: at random, or in turn by `epoch` from a drawn one on."""

    rng: np.random.Generator
    epoch: int = -1

    def one(self, count: int) -> int:
        """0 to `count` - 1."""
        if self.epoch < 0:
            return int(self.rng.integers(count))
        return (int(self.rng.integers(_MANY)) + self.epoch) % count

    def nested(self, groups: int, size: Callable[[int], int]) -> tuple[int, int]:
        """A group, and one of its members; in turn, all members of all groups come by."""
        if self.epoch < 0:
            group = self.one(groups)
            return group, self.one(size(group))
        turn = self.one(_MANY)
        return turn % groups, turn // groups % size(turn % groups)


def _show(image: Any, view: np.ndarray | None, preprocess: Preprocess) -> torch.Tensor:
    """uint8 [3, size, size] as a model with this preprocessing reads it."""
    if view is None:
        return resize(image, preprocess)
    return apply_view(image, view, size=preprocess.size, interpolation=preprocess.interpolation)


def _extra(pixels: torch.Tensor, augment: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """More RandAugment operations on what the student sees; the teachers' embeddings are of the view without them."""
    operations, strength = augment
    if not operations:
        return pixels
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for _ in range(operations):
        op = OPS[int(rng.integers(len(OPS)))]
        sign = 1 if rng.integers(2) else -1
        image = apply_operation(image, op, magnitude(op, sign * strength, image.width))
    return to_tensor(image)


def batches(
    dataset: PairDataset,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    seed: int,
    workers: int,
    rows: slice = slice(None),
) -> Iterator[Item]:
    """Batches of steps `first_step`..`last_step` - 1, of each the given rows (all, or one process's share).

    The order is a function of the seed and the shards' sizes: epochs are laid end to end and cut into batches, so a run
    that starts at step s sees exactly what an unbroken run sees from there. Neither workers nor processes change what a
    batch holds. Up to 256 shards an epoch is permuted whole, beyond that in windows (`mobileclip.data.order.Streams`).
    """
    loader: DataLoader[Item] = DataLoader(
        dataset,
        batch_sampler=Steps(dataset.starts, batch_size, first_step, last_step, seed, rows),  # type: ignore[arg-type]
        num_workers=workers,
        # Its own generator: else opening a loader would move torch's, and a resumed run would draw other dropout masks.
        generator=torch.Generator().manual_seed(seed),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )
    with undisturbed():  # it forks its workers
        return iter(loader)


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
    folder: str, manifest: Manifest, shards: Sequence[Shard], reader: Callable[[int], ShardReader], recipe: Recipe
) -> Rows:
    """Where the samples lie that are selected and have the caption field."""
    selection = manifest.column("selection") if recipe.selection and manifest.has("selection") else None

    def used(number: int) -> tuple[int, np.ndarray | None]:
        shard = shards[number]
        keep = np.ones(shard.samples, dtype=bool)
        if selection is not None and shard.name in selection.parts:
            keep &= ColumnReader(folder, selection, shard).all("keep").bool().numpy()
        if recipe.caption_field != "captions":
            opened = reader(number)
            keep &= [bool(_captions(opened.sample(row).metadata, recipe)) for row in range(len(opened))]
        return shard.samples, None if keep.all() else np.flatnonzero(keep).astype(np.int32)

    return Rows.of([used(number) for number in range(len(shards))])


def _embedding(reader: ColumnReader, row: int, index: int) -> torch.Tensor:
    """One stored vector as float32 (see `mobileclip.data.embeddings` for the encodings)."""
    from mobileclip.data.embeddings import decode_row

    return decode_row(reader, row, index)


def collate_teachers(batch: Mapping[str, torch.Tensor], kind: str, teachers: Sequence[str]) -> list[torch.Tensor]:
    """Per teacher the [batch, dim] embeddings of `image`, `text` or `synthetic`."""
    return [batch[f"teacher_{kind}.{teacher}"] for teacher in teachers]
