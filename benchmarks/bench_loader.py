"""Reading a reinforced dataset: against the same loader without reinforcement, and against the DataCompDR layout.

    python -m benchmarks.bench_loader [--samples 200] [--views 10] [--captions 5] [--repeats 5]

All sides read the same made-up JPEGs (640x480) in one process with one thread, by turns; the CPU time of the median
round counts. The two loaders take turns sample by sample, as their difference is below the noise of a busy machine; the
first rounds, in which they meet captions they have not tokenized yet, do not count. The other layout is the public one:
per sample a webdataset member group `jpg`, `txt`, `syn.json`, `paug.json` and `pth.gz` (bfloat16, two teachers of 768
values), read by webdataset, embeddings by torch's restricted loader, the drawn view replayed by the same code as ours.
"Without pictures" leaves out decoding and replay.
"""

import argparse
import gzip
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
import webdataset

from benchmarks import made_data
from mobileclip.config import Views
from mobileclip.data.augment import apply_view
from mobileclip.data.columns import ColumnReader, read_captions, unpack_texts
from mobileclip.data.embeddings import decode_all, decode_row
from mobileclip.data.images import decode
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.preprocess import Preprocess
from mobileclip.data.shards import Sample, ShardReader
from mobileclip.manifest import Manifest

SIZE, WIDTH, HEIGHT = 256, 640, 480
PREPROCESS = Preprocess(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        items = made_data.samples(options.samples, width=WIDTH, height=HEIGHT)
        content = made_data.reinforced(
            folder, items, views=options.views, captions=options.captions, size=(WIDTH, HEIGHT)
        )
        tar = _write_public(Path(folder), items, content)
        spent = _measure(_readers(folder, content, tar), options.repeats)
        spent |= _by_sample(_loaders(folder, content), options.repeats, warm=3 * options.captions)
    print(
        f"{options.samples} samples of {WIDTH}x{HEIGHT}, {options.views} views, {options.captions} captions, "
        f"{len(made_data.TEACHERS)} teachers of {made_data.DIM}, microseconds of CPU per sample\n"
    )
    each = {name: seconds / options.samples * 1e6 for name, seconds in spent.items()}
    print("| what is read | ours | compared with | its | ratio | wanted |")
    print("|---|---|---|---|---|---|")
    for what, ours, theirs, wanted in (
        ("reinforced samples", "reinforced", "plain", ">= 0.95"),
        ("whole samples", "reinforced", "public", ""),
        ("without pictures", "rows", "public rows", ">= 3"),
        ("embeddings alone", "vectors", "public vectors", ">= 10"),
    ):
        print(
            f"| {what} | {each[ours]:.0f} | {_NAMES[theirs]} | {each[theirs]:.0f} | "
            f"{each[theirs] / each[ours]:.2f}x | {wanted} |"
        )


_NAMES = {
    "plain": "same loader, fresh views, no teachers",
    "public": "DataCompDR tar, pth.gz",
    "public rows": "DataCompDR tar, pth.gz",
    "public vectors": "pth.gz",
}


def _readers(folder: str, content: Manifest, tar: Path) -> dict[str, Callable[[], None]]:
    """One pass over all samples by every way of reading."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    shard = content.shards[0]
    columns = {c.name: ColumnReader(folder, c, shard) for c in content.columns}
    reader = ShardReader(folder, shard)
    members = [s["pth.gz"] for s in webdataset.WebDataset(str(tar), shardshuffle=False)]
    return {
        "public": lambda: _public(tar, tokenizer, pictures=True),
        "rows": lambda: _rows(columns, reader),
        "public rows": lambda: _public(tar, None, pictures=False),
        "vectors": lambda: _vectors(columns, len(reader)),
        "public vectors": lambda: _public_vectors(members),
    }


def _loaders(folder: str, content: Manifest) -> dict[str, PairDataset]:
    recipe = Recipe(PREPROCESS, open_clip.get_tokenizer("ViT-B-32"), synthetic=("coca",), teachers=made_data.TEACHERS)
    return {
        "reinforced": PairDataset(folder, content, recipe),
        "plain": PairDataset(folder, content, replace(recipe, synthetic=(), teachers=(), views=Views(num_views=1))),
    }


def _by_sample(datasets: dict[str, PairDataset], repeats: int, *, warm: int) -> dict[str, float]:
    """Median CPU seconds of an epoch of each, after `warm` epochs; they take turns sample by sample."""
    spent: dict[str, list[float]] = {name: [] for name in datasets}
    for epoch in range(warm + repeats):
        sums = dict.fromkeys(datasets, 0.0)
        for position in range(len(next(iter(datasets.values())))):
            order = list(datasets) if position % 2 else list(datasets)[::-1]
            for name in order:
                start = time.process_time()
                datasets[name][epoch, position]
                sums[name] += time.process_time() - start
        for name, seconds in sums.items() if epoch >= warm else ():
            spent[name].append(seconds)
    return {name: statistics.median(values) for name, values in spent.items()}


def _rows(columns: dict[str, ColumnReader], reader: ShardReader) -> None:
    """Everything of a sample but its pixels: captions, one view, one embedding of each kind and teacher."""
    for index in range(len(reader)):
        sample = reader.sample(index)
        sample.captions, unpack_texts(columns["coca"], index), columns["views"].row("views", index)[3].numpy()
        _pick(columns, index)


def _vectors(columns: dict[str, ColumnReader], count: int) -> None:
    for index in range(count):
        _pick(columns, index)


def _pick(columns: dict[str, ColumnReader], index: int) -> list[torch.Tensor]:
    return [
        decode_row(columns[f"{teacher}.{kind}"], index, place)
        for teacher in made_data.TEACHERS
        for kind, place in (("views", 3), ("captions", 0), ("coca", 2))
    ]


def _write_public(folder: Path, items: Sequence[Sample], content: Manifest) -> Path:
    """The public layout of the same data: one synthetic text embedding row per caption after the ground truth's."""
    shard, columns = content.shards[0], {c.name: c for c in content.columns}
    stored = {n: decode_all(ColumnReader(str(folder), c, shard))[0] for n, c in columns.items() if "." in n}
    views = ColumnReader(str(folder), columns["views"], shard).all("views")
    texts = read_captions(str(folder), columns["coca"], shard)

    def both(kind: str, index: int) -> torch.Tensor:
        rows = len(stored[f"one.{kind}"]) // len(items)
        part = slice(index * rows, (index + 1) * rows)
        return torch.cat([stored[f"{teacher}.{kind}"][part] for teacher in made_data.TEACHERS], dim=1)

    path = folder / "public.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for index, sample in enumerate(items):
            stream = io.BytesIO()
            text = torch.cat([both("captions", index), both("coca", index)])
            torch.save({"image_emb": both("views", index).bfloat16(), "text_emb": text.bfloat16()}, stream)
            rows = [[row[:4], [row[4:6], row[6:]]] for row in views[index].tolist()]
            writer.write(
                {
                    "__key__": sample.uid, "jpg": sample.image, "txt": sample.captions[0].encode(),
                    "syn.json": json.dumps({"syn_text": texts[index]}).encode(),
                    "paug.json": json.dumps({"param_aug": rows}).encode(), "pth.gz": gzip.compress(stream.getvalue()),
                }
            )  # fmt: skip
    return path


def _public(tar: Path, tokenizer: Callable[[list[str]], torch.Tensor] | None, *, pictures: bool) -> None:
    rng = np.random.default_rng(0)
    for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
        place = int(rng.integers(5))
        texts = [sample["txt"].decode(), json.loads(sample["syn.json"])["syn_text"][place]]
        box, operations = json.loads(sample["paug.json"])["param_aug"][place]
        _public_pick(sample["pth.gz"], place)
        if pictures and tokenizer is not None:
            view = np.array([*box, *operations[0], *operations[1]])
            apply_view(decode(sample["jpg"]), view, size=SIZE, interpolation="bilinear")
            tokenizer(texts)


def _public_vectors(members: Sequence[bytes]) -> None:
    for data in members:
        _public_pick(data, 3)


def _public_pick(data: bytes, place: int) -> list[torch.Tensor]:
    arrays = torch.load(io.BytesIO(gzip.decompress(data)), weights_only=True)
    rows = arrays["image_emb"][place].float(), arrays["text_emb"][0].float(), arrays["text_emb"][1 + place].float()
    return [part for row in rows for part in row.split(made_data.DIM)]


def _measure(work: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, after one round that warms all up."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, function in work.items():
            start = time.process_time()
            function()
            if turn:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    main()
