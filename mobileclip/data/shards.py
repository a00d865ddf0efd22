"""Base shards: plain webdataset tars (`uid.png`, `uid.txt`, `uid.json`), written reproducibly and read by offset."""

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import webdataset

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.manifest import Manifest, Shard, uids_digest

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif", "jpe", "apng")
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
    """Write one shard whole and describe it.

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
    storage.write_bytes(storage.join(folder, path), data)
    return Shard(
        name=name, split=split, path=path, samples=len(samples), bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), uids_sha256=uids_digest([s.uid for s, _ in samples]),
    )  # fmt: skip


class ShardReader:
    """Random access to one tar: headers are read once, members are sliced from a memory map.

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
        self._members = _index(str(self._path), shard)
        self.uids = list(self._members)
        if len(self.uids) != shard.samples or uids_digest(self.uids) != shard.uids_sha256:
            raise DataError(
                f"shard '{shard.name}': '{self._path}' has {len(self.uids)} samples, the manifest promises "
                f"{shard.samples} with uids {shard.uids_sha256[:12]}; the file is cut or was replaced."
            )
        # A set converted without its pictures has none at all; where some have one, the others lost theirs.
        pictures = {uid for uid, members in self._members.items() if not members.keys().isdisjoint(IMAGE_EXTENSIONS)}
        for uid, members in self._members.items():
            if "json" not in members or (pictures and uid not in pictures):
                raise DataError(f"shard '{shard.name}': '{self._path}' lacks the picture or the json of '{uid}'.")
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.uids)

    def sample(self, index: int) -> Sample:
        """The sample at a position."""
        members = self._members[self.uids[index]]
        extension = next((e for e in members if e in IMAGE_EXTENSIONS), "")
        if not extension:
            raise DataError(f"shard '{self.name}': holds no pictures, the dataset was converted without them.")
        return Sample(self.uids[index], self._read(members[extension]), json.loads(self._read(members["json"])))

    def _read(self, span: tuple[int, int]) -> bytes:
        if self._map is None:  # opened on first use, so that loader processes do not share a handle
            storage.verify_local(self._path, self._sha256)
            with self._path.open("rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map[span[0] : span[0] + span[1]]

    def __getstate__(self) -> dict[str, Any]:
        """A reader travels to a worker without its memory map."""
        return {**self.__dict__, "_map": None}


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


def _index(path: str, shard: Shard) -> dict[str, dict[str, tuple[int, int]]]:
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                uid, _, extension = info.name.partition(".")
                members.setdefault(uid, {})[extension] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        raise DataError(f"shard '{shard.name}': '{path}' is no readable tar: {error}.") from None
    return members
