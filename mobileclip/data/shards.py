"""Base shards: plain webdataset tars (`uid.png`, `uid.txt`, `uid.json`), written reproducibly and read by offset."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import webdataset

from mobileclip import storage
from mobileclip.data.mapped import map_bytes
from mobileclip.data.tar_index import IMAGE_EXTENSIONS, TarIndex, index_tar, read_index
from mobileclip.errors import DataError, IntegrityError
from mobileclip.manifest import Manifest, Shard, index_path

__all__ = ["IMAGE_EXTENSIONS", "Sample", "ShardReader", "image_extension", "read_samples", "write_shard"]

logger = logging.getLogger(__name__)

_MARKS = {
    b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif",
}  # fmt: skip
# Any webdataset pipeline in this process reads s3:// by the retries and credentials of `mobileclip.storage`.
webdataset.gopen_schemes["s3"] = lambda url, _mode="rb", _bufsize=8192, **_: storage.open_stream(url)


@dataclass(frozen=True)
class Sample:
    """One image with its captions.

    Attributes:
        uid: Unique id; a function of the picture's bytes or of the source's own key.
        image: Encoded picture, as the user gave it.
        metadata: `captions` (list of str) and every other field of the source.
    """

    uid: str
    image: bytes
    metadata: dict[str, Any]

    @property
    def captions(self) -> list[str]:
        """Ground-truth captions."""
        return list(self.metadata["captions"])


def write_shard(folder: str, name: str, split: str, samples: Sequence[tuple[Sample, str]]) -> Shard:
    """Write one shard and its index whole and describe it.

    Args:
        folder: Output folder or URI.
        name: Shard name without suffix.
        split: train, validation or test.
        samples: Samples with their image extension, in order.

    Returns:
        Its manifest entry. The same samples give the same bytes (times are zero, keys sorted).
    """
    stream = io.BytesIO()
    with webdataset.TarWriter(stream, encoder=False, mtime=0) as writer:
        for sample, extension in samples:
            members: dict[str, Any] = {
                "__key__": sample.uid,
                "json": json.dumps(sample.metadata, sort_keys=True, ensure_ascii=False).encode(),
            }
            if sample.image:
                members[extension] = sample.image
            if sample.captions:
                members["txt"] = sample.captions[0].encode()
            writer.write(members)
    data = stream.getvalue()
    path = f"{name}.tar"
    index = index_tar(io.BytesIO(data), name=f"shard '{name}'")
    described = index.to_bytes()
    storage.write_bytes(storage.join(folder, index_path(path)), described)
    storage.write_bytes(storage.join(folder, path), data)
    return Shard(
        name=name, split=split, path=path, samples=len(index), bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), uids_sha256=index.uids_sha256(),
        index_sha256=hashlib.sha256(described).hexdigest(),
    )  # fmt: skip


class ShardReader:
    """Random access to one tar: its index says where members lie, which are sliced from a memory map.

    The file's digest is checked before its first member is read, by whichever process reads it.

    Raises:
        DataError: The tar is missing, unreadable or does not hold the samples its manifest entry promises (for example
            because it was cut at a member boundary, which tar readers pass over in silence).
    """

    def __init__(self, folder: str, shard: Shard) -> None:
        """Open shard `shard` of the dataset in `folder`."""
        self.name = shard.name
        self._path = storage.local_copy(storage.join(folder, shard.path), sha256=shard.sha256)
        self._sha256 = shard.sha256
        storage.share()
        self._index = self._find_index(folder, shard)
        if len(self._index) != shard.samples or self._index.uids_sha256() != shard.uids_sha256:
            raise DataError(
                f"shard '{shard.name}': '{self._path}' has {len(self._index)} samples, the manifest promises "
                f"{shard.samples} with uids {shard.uids_sha256[:12]}; the file is cut or was replaced."
            )
        self._bytes: Any = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._index)

    @property
    def uids(self) -> list[str]:
        """Every uid in order."""
        return self._index.all_uids()

    def sample(self, index: int) -> Sample:
        """The sample at a position."""
        image, size, metadata, length = self._index.spans[index].tolist()
        if image < 0:
            raise DataError(f"shard '{self.name}': holds no images, the dataset was converted without them.")
        return Sample(self._index.uid(index), self._read(image, size), json.loads(self._read(metadata, length)))

    def _find_index(self, folder: str, shard: Shard) -> TarIndex:
        if shard.index_sha256:
            if (size := self._path.stat().st_size) != shard.bytes:
                raise DataError(
                    f"shard '{shard.name}': '{self._path}' has {size} bytes, the manifest promises {shard.bytes}; "
                    "the file is cut or was replaced."
                )
            try:
                path = storage.local_copy(storage.join(folder, shard.index_path), sha256=shard.index_sha256)
                storage.verify_local(path, shard.index_sha256)
                return read_index(path)
            except (DataError, IntegrityError) as error:  # the tar says the same, more slowly
                logger.warning("shard '%s': %s; reading the tar's own headers instead.", shard.name, str(error)[:-1])
        with self._path.open("rb") as file:
            return index_tar(file, name=f"shard '{shard.name}': '{self._path}'")

    def _read(self, start: int, size: int) -> bytes:
        if self._bytes is None:  # mapped on first use, so that loader processes do not share a map
            storage.verify_local(self._path, self._sha256)
            self._bytes = map_bytes(self._path).numpy()
        found: bytes = self._bytes[start : start + size].tobytes()
        return found

    def __getstate__(self) -> dict[str, Any]:
        """A reader travels to a worker without its memory map."""
        return {**self.__dict__, "_bytes": None}


def image_extension(data: bytes) -> str:
    """The ending of encoded bytes by their first ones; jpg where those say nothing."""
    if data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in {b"ftypavif", b"ftypavis"}:
        return "avif"
    return next((extension for mark, extension in _MARKS.items() if data.startswith(mark)), "jpg")


def read_samples(folder: str, manifest: Manifest, *splits: str) -> Iterator[Sample]:
    """All samples of these splits in order."""
    for shard in manifest.split(*splits):
        reader = ShardReader(folder, shard)
        for index in range(len(reader)):
            yield reader.sample(index)
