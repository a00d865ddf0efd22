"""Where each sample's members lie in its tar: written once beside the shard, so that opening one parses nothing.

`NAME.index` beside `NAME.tar` is a safetensors file of `uids` uint8 (joined by newlines, so that its sha256 is the
manifest's `uids_sha256`), `ends` int64 [samples] (where each uid ends in it) and `spans` int64 [samples, 4]: offset and
size of the image and of the JSON, in bytes; an image that is not there has offset -1. The manifest holds the index's
digest. Shards of earlier datasets have none: their tar's headers are read where they are opened.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors

from mobileclip.data.mapped import map_tensors
from mobileclip.errors import DataError, IntegrityError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif", "jpe", "apng")
_TENSORS = {"uids", "ends", "spans"}


@dataclass(frozen=True)
class TarIndex:
    """The members of one tar.

    Attributes:
        uids: All uids joined by newlines, uint8.
        ends: Where each uid ends in it, int64 [samples].
        spans: Offset and size of image and JSON, int64 [samples, 4].
    """

    uids: np.ndarray
    ends: np.ndarray
    spans: np.ndarray

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ends)

    def uid(self, row: int) -> str:
        """The uid of a row."""
        start = int(self.ends[row - 1]) + 1 if row else 0
        return self.uids[start : int(self.ends[row])].tobytes().decode()

    def all_uids(self) -> list[str]:
        """Every uid in order."""
        return self.uids.tobytes().decode().split("\n") if len(self) else []

    def uids_sha256(self) -> str:
        """Digest of the uids in order, as manifests have it."""
        return hashlib.sha256(self.uids.tobytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The index as a file: the same members give the same bytes."""
        arrays = {"uids": self.uids, "ends": self.ends, "spans": self.spans}
        return save_safetensors({name: torch.from_numpy(array) for name, array in arrays.items()})


def index_tar(file: BinaryIO, *, name: str) -> TarIndex:
    """Read a tar's headers.

    Args:
        file: The tar, not compressed.
        name: What an error calls it.

    Raises:
        DataError: It is no tar, or a sample lacks its JSON, or its image where others have one.
    """
    members: dict[str, list[int]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                uid, _, extension = info.name.partition(".")
                spans = members.setdefault(uid, [-1, 0, -1, 0])
                if extension in IMAGE_EXTENSIONS and spans[0] < 0:
                    spans[:2] = info.offset_data, info.size
                elif extension == "json":
                    spans[2:] = info.offset_data, info.size
    except tarfile.TarError as error:
        raise DataError(f"{name} is no readable tar: {error}.") from None
    # A set converted without its images has none at all; where some have one, the others lost theirs.
    with_images = any(spans[0] >= 0 for spans in members.values())
    for uid, spans in members.items():
        if spans[2] < 0 or (with_images and spans[0] < 0):
            raise DataError(f"{name} lacks the image or the json of '{uid}'.")
    return _build(list(members), list(members.values()))


def read_index(path: Path) -> TarIndex:
    """Map an index that was written beside a tar.

    Raises:
        IntegrityError: It is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            whole = set(file.keys()) == _TENSORS
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"index '{path.name}' is damaged: {error}.") from None
    if not whole:
        raise IntegrityError(f"index '{path.name}' is damaged: it holds other tensors than {sorted(_TENSORS)}.")
    arrays = {name: tensor.numpy() for name, tensor in map_tensors(path).items()}
    return TarIndex(arrays["uids"], arrays["ends"], arrays["spans"])


def _build(uids: Sequence[str], spans: Sequence[Sequence[int]]) -> TarIndex:
    encoded = [uid.encode() for uid in uids]
    lengths = np.array([len(uid) for uid in encoded], dtype=np.int64)
    joined = np.frombuffer(bytearray(b"\n".join(encoded)), dtype=np.uint8)
    ends = np.cumsum(lengths + 1, dtype=np.int64) - 1
    return TarIndex(joined, ends, np.array(spans, dtype=np.int64).reshape(len(uids), 4))
