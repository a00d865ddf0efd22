"""A reinforced dataset of made-up pictures and embeddings in realistic sizes, for benchmarks that read it."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from mobileclip import manifest
from mobileclip.config import Views
from mobileclip.data.augment import draw_views
from mobileclip.data.columns import ColumnPlan, build_columns, collect, pack_texts
from mobileclip.data.embeddings import encode
from mobileclip.data.shards import Sample, write_shard
from mobileclip.manifest import Manifest

WORDS = "a photo of the old red small wooden house near river with two people walking dogs"
TEACHERS = ("one", "two")
DIM = 768


def picture(index: int, width: int, height: int) -> bytes:
    """A JPEG (quality 90) with edges, gradients and grain: about 100 kB at 640x480, as photographs have."""
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grainy = pixels + rng.normal(0, 9, pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def caption(rng: np.random.Generator) -> str:
    """Eight to sixteen words."""
    return " ".join(rng.choice(WORDS.split(), rng.integers(8, 17)))


def samples(count: int, *, width: int = 640, height: int = 480) -> list[Sample]:
    """Pictures with one caption each."""
    rng = np.random.default_rng(0)
    return [Sample(f"{i:012d}", picture(i, width, height), {"captions": [caption(rng)]}) for i in range(count)]


def embeddings(owners: int, rows: int, *, seed: int) -> torch.Tensor:
    """Unit vectors [owners * rows, DIM]; those of one owner are alike, as views of one picture are."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(owners, 1, DIM, generator=generator)
    return normalize(center + 0.6 * torch.randn(owners, rows, DIM, generator=generator), dim=-1).flatten(0, 1)


def reinforced(
    folder: str, items: Sequence[Sample], *, views: int, captions: int, size: tuple[int, int], dtype: str = "float16"
) -> Manifest:
    """Write one shard with a view column, a caption column and two teachers' embeddings."""
    shard = write_shard(folder, "train-00000", "train", [(sample, "jpg") for sample in items])
    rng = np.random.default_rng(1)
    texts = [[caption(rng) for _ in range(captions)] for _ in items]
    rows = [draw_views(Views(num_views=views), uid=s.uid, seed=0, width=size[0], height=size[1]) for s in items]
    tensors = {
        "coca": {**pack_texts(texts), "degenerate": torch.zeros(len(items), captions, dtype=torch.uint8)},
        "views": {
            "views": torch.from_numpy(np.stack(rows)),
            "sizes": torch.tensor([size] * len(items), dtype=torch.int32),
        },
    }
    plans = [ColumnPlan("coca", "caption", {}), ColumnPlan("views", "view", {"num_views": views})]
    for seed, teacher in enumerate(TEACHERS):
        for kind, count in (("views", views), ("captions", 1), ("coca", captions)):
            vectors = embeddings(len(items), count, seed=seed)
            tensors[f"{teacher}.{kind}"] = encode(vectors, [count] * len(items), dtype)
            plans.append(ColumnPlan(f"{teacher}.{kind}", "embedding", {"dim": DIM, "dtype": dtype}))
    build_columns(folder, plans, [shard], lambda *_: tensors)
    content = collect(folder, plans, [shard], Manifest(shards=[shard]))
    manifest.write(folder, content)
    return content
