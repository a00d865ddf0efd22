"""Stored embeddings: how far each storage type may be off, and rows read alone."""

import pytest
import torch
from torch.nn.functional import normalize

from mobileclip.data.columns import ColumnPlan, ColumnReader, build_columns, collect
from mobileclip.data.embeddings import as_stored, decode_all, decode_row, encode
from mobileclip.manifest import Manifest, Shard

COUNTS = [3, 0, 2, 5]


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    torch.manual_seed(0)
    vectors = normalize(torch.randn(sum(COUNTS), 512, dtype=torch.float64), dim=1).float()
    vectors[0] = 0
    vectors[0, 7] = -1  # the most uneven unit vector there is
    return vectors


def _stored(folder, tensors) -> ColumnReader:
    shard = Shard(name="s", split="train", path="s.tar", samples=4, bytes=1, sha256="0", uids_sha256="u")
    plan = ColumnPlan("e", "embedding", {})
    build_columns(str(folder), [plan], [shard], lambda *_: {"e": tensors})
    content = collect(str(folder), [plan], [shard], Manifest(shards=[shard]))
    return ColumnReader(str(folder), content.column("e"), shard)


@pytest.mark.parametrize(
    ("dtype", "relative", "size"),
    [("float32", 0.0, 4.0), ("float16", 2**-11, 2.0), ("bfloat16", 2**-8, 2.0), ("int8", None, 1.02)],
)
def test_rounding_and_size(tmp_path, features, dtype, relative, size):
    tensors = encode(features, COUNTS, dtype)
    stored, counts = decode_all(_stored(tmp_path, tensors))
    assert stored.dtype == torch.float32
    assert counts.tolist() == [0, 3, 3, 5, 10]
    assert torch.equal(as_stored(features, dtype), stored)
    error = (stored - features).abs()
    if relative is None:
        # Half a step of 1/127 of the largest value, plus float16's rounding of the step itself.
        largest = features.abs().amax(dim=1, keepdim=True)
        assert bool((error <= largest * (0.5 / 127 + 2**-11 * 1.01)).all())
    else:
        assert bool((error <= features.abs() * relative + 2**-25).all())
    cosine = normalize(stored, dim=1) * features
    assert (
        float(cosine.sum(dim=1).min())
        > {"float32": 1 - 1e-6, "float16": 1 - 1e-6, "bfloat16": 1 - 1e-5, "int8": 1 - 5e-4}[dtype]
    )
    assert float((stored.norm(dim=1) - 1).abs().max()) < 1e-2  # what verify allows
    data = sum(t.numel() * t.element_size() for name, t in tensors.items() if name != "counts")
    assert data / features.numel() == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_row_alone_is_the_row_of_all(tmp_path, features, dtype):
    reader = _stored(tmp_path, encode(features, COUNTS, dtype))
    everything, counts = decode_all(reader)
    for sample, count in enumerate(COUNTS):
        for index in range(count):
            assert torch.equal(decode_row(reader, sample, index), everything[counts[sample] + index])


def test_nothing_at_all(tmp_path):
    stored, counts = decode_all(_stored(tmp_path, encode(torch.zeros(0, 8), [0, 0, 0, 0], "int8")))
    assert stored.shape == (0, 8)
    assert counts.tolist() == [0] * 5
