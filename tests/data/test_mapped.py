"""Maps that hold no file open, and a bounded number of readers."""

import os
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mobileclip.data.mapped import Readers, map_bytes, map_tensors


def _descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_map_is_the_files_bytes_and_holds_no_descriptor(tmp_path):
    files = [tmp_path / f"{size}" for size in (0, 1, 5000)]
    for size, path in zip((0, 1, 5000), files, strict=True):
        path.write_bytes(os.urandom(size))
    before = _descriptors()
    maps = [map_bytes(path) for path in files]
    assert [one.numpy().tobytes() for one in maps] == [path.read_bytes() for path in files]
    assert _descriptors() == before


def test_tensors_are_those_that_safetensors_reads(tmp_path):
    tensors = {
        "a": torch.randn(3, 5, dtype=torch.float16), "b": torch.randint(0, 255, (7,), dtype=torch.uint8),
        "c": torch.randn(2, 2), "empty": torch.empty(0, 4), "d": torch.arange(3), "one": torch.tensor(3.5),
    }  # fmt: skip
    save_file(tensors, tmp_path / "t.safetensors", metadata={"x": "y"})
    found, wanted = map_tensors(tmp_path / "t.safetensors"), load_file(tmp_path / "t.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)


def test_the_reader_used_longest_ago_goes_first():
    opened = []
    readers = Readers(2)

    def get(key):
        return readers.get(key, lambda: opened.append(key) or key.upper())

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert opened == list("abcb")  # c took b's place, not a's
    assert len(readers) == 2
    assert len(pickle.loads(pickle.dumps(readers))) == 0
