"""The folder inside of a delegate's payload, against ExecuTorch's own extension."""

import json

import pytest
from executorch.backends.apple.coreml import executorchcoreml

from mobileclip.errors import DataError
from mobileclip.formats.executorch_coreml import payload as payloads

FILES = {
    "lowered_module/metadata.json": b'{"identifier": "x{}"}',
    "lowered_module/model.mlpackage/Manifest.json": b"{}",
    "lowered_module/model.mlpackage/Data/com.apple.CoreML/model.mlmodel": bytes(range(256)),
    "lowered_module/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin": b'\x00\xff{"nodes"\n' * 999,
}


def _read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_extension_reads_what_is_packed(tmp_path):
    assert executorchcoreml.unflatten_directory_contents(payloads.pack(FILES), str(tmp_path))
    assert _read(tmp_path) == FILES


def test_what_the_extension_packs_is_read(tmp_path):
    package = payloads.write(FILES, tmp_path)
    assert package == tmp_path / "lowered_module" / "model.mlpackage"
    payload = executorchcoreml.flatten_directory_contents(str(tmp_path / "lowered_module"))
    assert payloads.unpack(payload) == FILES


def test_order_of_the_files_says_nothing():
    backwards = dict(reversed(FILES.items()))
    assert payloads.pack(backwards) == payloads.pack(FILES)
    assert payloads.unpack(payloads.pack(backwards)) == FILES


def _table(*nodes):
    """A payload of eight bytes with that table."""
    return b"\0" * 8 + json.dumps({"nodes": nodes}).encode()[::-1]


def _file(name="a", offset=0, size=8):
    return {"name": name, "kind": 0, "children": {}, "dataRegion": {"offset": offset, "size": size}}


def _folder(name, **children):
    return {"name": name, "kind": 1, "children": children, "dataRegion": {"offset": 0, "size": 0}}


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\0" * 100, payloads.pack(FILES)[:-1], _table(), _table(_file(offset=4)),
        _table(_file(size=-8)), _table(_file("../a")), _table(_file("a/b")), _table(_file(), _folder("f", a=1)),
        _table(_file(), _folder("f", a=0), _folder("g", f=1, a=0)), _table(_file(), _folder("f", a=-1)),
        json.dumps({"files": 3}).encode()[::-1], b"}"[::-1],
    ],
    ids=[
        "empty", "zeros", "short", "no nodes", "behind the end", "negative", "above", "two parts", "ring", "twice",
        "before the first", "other table", "half a table",
    ],
)  # fmt: skip
def test_damaged_payloads_are_refused(payload):
    with pytest.raises(DataError, match="the delegate's payload is no folder of files"):
        payloads.unpack(payload)


def test_table_of_the_tests_is_readable():
    """The refused ones above differ from this one."""
    payload = _table(_file(), _folder("f", a=0), _folder("g", f=1))
    assert payloads.unpack(payload) == {"g/f/a": b"\0" * 8}
