"""Embedding members: exact round trips, and hostile or damaged bytes that give one sentence and run nothing."""

import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip.convert.payload import MAX_BYTES, from_npz, from_pth, to_npz, to_pth
from mobileclip.errors import DataError


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image_emb": torch.randn(10, 48, generator=generator),
        "text_emb": torch.randn(6, 48, generator=generator),
    }


def _saved(value, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return gzip.compress(stream.getvalue())


def test_npz_keeps_every_bit_and_is_what_numpy_writes(arrays):
    data = to_npz(arrays)
    assert data == to_npz(dict(reversed(arrays.items())))
    again = from_npz(data)
    assert again.keys() == arrays.keys()
    assert all(torch.equal(again[name], arrays[name]) for name in arrays)
    assert np.array_equal(np.load(io.BytesIO(data))["text_emb"], arrays["text_emb"].numpy())


def test_a_compressed_npz_and_other_floats_are_read(arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, image_emb=arrays["image_emb"].numpy().astype(np.float16))
    assert torch.equal(from_npz(stream.getvalue())["image_emb"], arrays["image_emb"].half().float())


def test_pth_gz_rounds_to_bfloat16_and_is_what_torch_writes(arrays):
    data = to_pth(arrays)
    assert data == to_pth(arrays)
    for found in (from_pth(data), from_pth(_saved({k: v.bfloat16() for k, v in arrays.items()}))):
        assert all(torch.equal(found[name], arrays[name].bfloat16().float()) for name in arrays)
    loaded = torch.load(io.BytesIO(gzip.decompress(data)), weights_only=True)
    assert loaded["image_emb"].dtype == torch.bfloat16


class _Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["value", "whole", "key", "legacy", "plain", "nested"])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path, place):
    evil = _Touch(str(tmp_path / "ran"))
    data = {
        "value": lambda: _saved({"image_emb": evil}),
        "whole": lambda: _saved(evil),
        "key": lambda: _saved({(evil,): torch.zeros(1, 1)}),
        "legacy": lambda: _saved({"image_emb": evil}, _use_new_zipfile_serialization=False),
        "plain": lambda: gzip.compress(pickle.dumps({"image_emb": evil})),
        "nested": lambda: _saved({"image_emb": torch.zeros(1, 1), "x": [{"y": evil}]}),
    }[place]()
    with pytest.raises(DataError, match=r"^pth\.gz: [^\n]+\.$"):
        from_pth(data)
    assert not (tmp_path / "ran").exists()


def test_the_pickle_above_would_have_run(tmp_path):
    """Otherwise the test proves nothing."""
    data = gzip.decompress(_saved({"image_emb": _Touch(str(tmp_path / "ran"))}))
    torch.load(io.BytesIO(data), weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(2, 2)], {"image_emb": [1.0]}, {"image_emb": torch.zeros(2)},
        {"image_emb": torch.zeros(2, 2).long()},
        {"image_emb": torch.eye(3).to_sparse()}, {str(i): torch.zeros(1, 1) for i in range(99)},
        {"image_emb": torch.zeros(1, 1).expand(10**6, 10**6)}, {"image_emb": torch.zeros(2, 2, device="meta")},
    ],
)  # fmt: skip
def test_what_is_no_dictionary_of_matrices_is_refused(value):
    """Among them a tensor that says it has 10^12 values where the file holds one."""
    with pytest.raises(DataError, match=r"^pth\.gz: [^\n]+\.$"):
        from_pth(_saved(value))


def test_a_bomb_is_refused_before_it_inflates():
    zeros = gzip.compress(bytes(MAX_BYTES + 1), 9)
    assert len(zeros) < 100_000
    with pytest.raises(DataError, match=rf"^pth\.gz: inflates to more than {MAX_BYTES} bytes\.$"):
        from_pth(zeros)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image_emb.npy", bytes(MAX_BYTES + 1))
    with pytest.raises(DataError, match=rf"^npz: holds more than {MAX_BYTES} bytes"):
        from_npz(stream.getvalue())
    with pytest.raises(DataError, match=r"^pth\.gz: holds (more than|compressed members)"):
        from_pth(gzip.compress(stream.getvalue()))


def _npz(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def test_npz_never_unpickles_and_never_believes_a_header(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, image_emb=np.array([_Touch(str(tmp_path / "ran"))], dtype=object))
    with pytest.raises(DataError, match=r"^npz: 'image_emb\.npy' is object \[1\], want a matrix of floats\.$"):
        from_npz(stream.getvalue())
    assert not (tmp_path / "ran").exists()
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**7)})
    with pytest.raises(DataError, match=r"has 4 bytes, not those of float32 \[10000000, 10000000\]\.$"):
        from_npz(_npz("image_emb.npy", array.getvalue() + bytes(4)))


@pytest.mark.parametrize("data", [b"", b"PK", b"hello", b"\x1f\x8b"])
@pytest.mark.parametrize("read", [from_npz, from_pth])
def test_what_is_no_archive_gets_a_sentence(read, data):
    with pytest.raises(DataError, match=r"^(npz|pth\.gz): [^\n]+\.$"):
        read(data)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["npz", "pth"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
    inside=st.booleans(),
)
def test_damaged_bytes_give_matrices_or_a_sentence_and_nothing_else(arrays, kind, edits, cut, inside):
    whole = to_npz(arrays) if kind == "npz" else to_pth(arrays)
    raw = bytearray(gzip.decompress(whole) if kind == "pth" and inside else whole)
    for place, value in edits:
        raw[int(place * len(raw))] = value
    data = bytes(raw[: max(1, int(cut * 2 * len(raw)))])
    data = gzip.compress(data) if kind == "pth" and inside else data
    try:
        found = from_npz(data) if kind == "npz" else from_pth(data)
    except DataError as caught:
        sentence = str(caught)
        assert "\n" not in sentence
    else:
        assert all(value.dtype == torch.float32 and value.ndim == 2 for value in found.values())
