"""Files as memory maps that hold no file open, and the readers over them of which a process keeps a bounded number."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

MAPS = 16_384
"""Files that a process maps at a time; the kernel's own limit is 65,530 (vm.max_map_count)."""
_DTYPES = {
    "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
}  # fmt: skip

Reader = TypeVar("Reader")


def map_bytes(path: Path) -> torch.Tensor:
    """A file's bytes, uint8 [size], read as they are used. Python's own maps keep a descriptor each, these do not.

    The map is private and copy-on-write, as torch wants to be allowed to write; nobody does.
    """
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0).byte()


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors over the mapped bytes of a safetensors file that was checked: u64 header length, JSON header, data."""
    data = map_bytes(path)
    start = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(data[8:start].numpy().tobytes()).items():
        if name == "__metadata__":
            continue
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        first, last = (start + offset for offset in entry["data_offsets"])
        # Headers are padded to eight bytes and tensors sorted by alignment, so a view never starts between elements.
        flat = data[first:last].view(dtype) if math.prod(shape) else torch.empty(0, dtype=dtype)
        tensors[name] = flat.view(shape)
    return tensors


class Readers(Generic[Reader]):
    """Readers by key, opened when they are asked for; those that were used longest ago are let go."""

    def __init__(self, most: int) -> None:
        """Keep at most this many, and one at least."""
        self._most = max(1, most)
        self._open: OrderedDict[Hashable, Reader] = OrderedDict()

    def __len__(self) -> int:
        """Number of readers that are open."""
        return len(self._open)

    def get(self, key: Hashable, open_one: Callable[[], Reader]) -> Reader:
        """The reader of that key, opened by `open_one` where it is not open."""
        found = self._open.get(key)
        if found is None:
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            found = self._open[key] = open_one()
        else:
            self._open.move_to_end(key)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Readers stay where they were opened; a worker opens its own."""
        return {"_most": self._most, "_open": OrderedDict()}
