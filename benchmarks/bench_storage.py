"""What stored embeddings take and what their rounding costs: bytes per sample, retrieval and loss.

    python -m benchmarks.bench_storage [--samples 1000] [--views 10] [--captions 5]

Per sample N views, one ground-truth caption and M synthetic ones, from two teachers of 768 values. The embeddings are
made up: unit vectors around a center per sample, text and image centers related such that retrieval is neither easy nor
hopeless, and two teachers that agree in part. Columns are one file per 1000 samples, the public layouts one member per
sample. Retrieval is recall@1 of captions by first views, exact against stored; the loss is the distillation loss of a
student (the exact affinities, blurred) at logit scale 100, batch 256: how far it moves when the teacher is rounded.
"""

import argparse
import gzip
import io
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize, softmax

from benchmarks.made_data import DIM
from mobileclip.data.embeddings import encode

SCALE, BATCH = 100.0, 256
Matrices = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--captions", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    exact = [_teacher(options.samples, options.views, options.captions) for _ in range(2)]
    student = _blurred(exact[0])
    print(
        f"{options.samples} samples, {options.views} views, 1 + {options.captions} captions, two teachers of {DIM}; "
        f"retrieval of the exact vectors: {_recall(exact[0]):.2%}\n"
    )
    print("| layout | bytes per sample | of npz float32 | recall@1, points | top-1 changed | loss, relative |")
    print("|---|---|---|---|---|---|")
    base = _npz(exact)
    for name, size, stored in _layouts(exact):
        change = (_recall(stored) - _recall(exact[0])) * 100
        moved = float((_best(stored) != _best(exact[0])).float().mean())
        loss = _loss(student, stored) / _loss(student, exact[0]) - 1
        each = size / options.samples
        print(f"| {name} | {each:,.0f} | {size / base:.3f} | {change:+.2f} | {moved:.2%} | {loss:+.1e} |")


def _layouts(exact: Sequence[Matrices]) -> list[tuple[str, int, Matrices]]:
    """Name, bytes of all samples and the first teacher as it comes back."""
    rounded = {
        dtype: {kind: _round(vectors, dtype) for kind, vectors in exact[0].items()}
        for dtype in ("float32", "float16", "bfloat16", "int8")
    }
    columns = [(f"column {dtype}", _columns(exact, dtype), rounded[dtype]) for dtype in rounded]
    packed = [
        (f"column {dtype} + zstd", _columns(exact, dtype, zstd=True), rounded[dtype])
        for dtype in ("float16", "bfloat16", "int8")
    ]
    public = [
        ("npz float32 (public)", _npz(exact), rounded["float32"]),
        ("pth.gz bfloat16 (public)", _pth(exact), rounded["bfloat16"]),
    ]
    return columns + packed + public


def _teacher(samples: int, views: int, captions: int) -> Matrices:
    """Unit vectors float32 [samples, rows, DIM] of views and of texts."""
    center = torch.randn(samples, 1, DIM)
    text = 0.2 * center + torch.randn(samples, 1, DIM)
    return {
        "views": normalize(center + 0.7 * torch.randn(samples, views, DIM), dim=-1),
        "texts": normalize(text + 0.7 * torch.randn(samples, 1 + captions, DIM), dim=-1),
    }


def _blurred(teacher: Matrices) -> Matrices:
    return {kind: normalize(v + 0.02 * torch.randn_like(v), dim=-1) for kind, v in teacher.items()}


def _round(vectors: Tensor, dtype: str) -> Tensor:
    flat = vectors.flatten(0, 1)
    stored = encode(flat, [len(flat)], dtype)
    features = stored["features"].float()
    if "scales" in stored:
        features = features * stored["scales"].float()[:, None]
    return features.view(vectors.shape)


def _columns(exact: Sequence[Matrices], dtype: str, *, zstd: bool = False) -> int:
    """Bytes of the column files, as the stage writes them."""
    total = 0
    for teacher in exact:
        for vectors in teacher.values():
            data = save(encode(vectors.flatten(0, 1), [vectors.shape[1]] * len(vectors), dtype))
            total += len(pa.compress(data, codec="zstd", asbytes=True)) if zstd else len(data)
    return total


def _members(exact: Sequence[Matrices], write: Callable[[dict[str, Tensor]], bytes]) -> int:
    joined = {kind: torch.cat([teacher[kind] for teacher in exact], dim=-1) for kind in exact[0]}
    return sum(
        len(write({"image_emb": views, "text_emb": texts}))
        for views, texts in zip(joined["views"], joined["texts"], strict=True)
    )


def _npz(exact: Sequence[Matrices]) -> int:
    def write(arrays: dict[str, Tensor]) -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **{name: tensor.numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]
        return stream.getvalue()

    return _members(exact, write)


def _pth(exact: Sequence[Matrices]) -> int:
    def write(arrays: dict[str, Tensor]) -> bytes:
        stream = io.BytesIO()
        torch.save({name: tensor.bfloat16() for name, tensor in arrays.items()}, stream)
        return gzip.compress(stream.getvalue())

    return _members(exact, write)


def _best(teacher: Matrices) -> Tensor:
    return (teacher["texts"][:, 0] @ teacher["views"][:, 0].T).argmax(dim=1)


def _recall(teacher: Matrices) -> float:
    best = _best(teacher)
    return float((best == torch.arange(len(best))).float().mean())


def _loss(student: Matrices, teacher: Matrices) -> float:
    """Mean of both directions' cross-entropy of affinities (MobileCLIP eq. 3) less the teacher's own entropy."""
    total, batches = 0.0, len(teacher["texts"]) // BATCH or 1
    for part in torch.arange(len(teacher["texts"])).tensor_split(batches):
        ours = SCALE * student["views"][part, 0] @ student["texts"][part, 0].T
        theirs = SCALE * teacher["views"][part, 0] @ teacher["texts"][part, 0].T
        for a, b in ((ours, theirs), (ours.T, theirs.T)):
            total += float(kl_div(log_softmax(a, 1), softmax(b, 1), reduction="batchmean")) / 2
    return total / batches


if __name__ == "__main__":
    main()
