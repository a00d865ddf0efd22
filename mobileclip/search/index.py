"""The index of a folder: one embedding per distinct image, kept on disk, and only what is new is embedded.

A file whose size and time of change are those of the index is not read again; one whose bytes are known under another
name or time is read, but not embedded. The index is one safetensors file per model, replaced whole.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mobileclip.data import images
from mobileclip.data.progress import progress_bar
from mobileclip.errors import ConfigError, DataError
from mobileclip.formats.image_input import MAX_PIXELS, to_pixels
from mobileclip.search.model import Model
from mobileclip.storage.walk import is_hidden

logger = logging.getLogger(__name__)

FOLDER = ".mobileclip"
"""Where the index of a folder lies within it, unless another place is named."""
MAX_BYTES = 512 << 20
"""Larger files are named as unreadable and not loaded into memory."""
_VERSION = 1
_SAVE_EVERY = 512  # images; an index that has grown is written at every quarter more, which keeps the sum linear
_THREADS = 4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One file of the folder.

    Attributes:
        size: In bytes.
        changed: Time of its last change [ns].
        sha256: Digest of its bytes; empty where they were not read.
        fault: Why it has no embedding, in one sentence; empty where it has one.
    """

    size: int
    changed: int
    sha256: str
    fault: str = ""


@dataclass
class Index:
    """Files of a folder with their embeddings.

    Attributes:
        entries: By path relative to the folder, with forward slashes.
        vectors: Unit-norm float32 [dim] by digest of the image's bytes.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The files that have an embedding, sorted."""
        return sorted(name for name, entry in self.entries.items() if not entry.fault)

    @property
    def broken(self) -> dict[str, str]:
        """The files that could not be read, sorted, with the reason."""
        return {name: entry.fault for name, entry in sorted(self.entries.items()) if entry.fault}

    def embeddings(self, names: Sequence[str]) -> Floats:
        """Unit-norm float32 [names, dim]."""
        return np.stack([self.vectors[self.entries[name].sha256] for name in names])


@dataclass(frozen=True)
class Update:
    """What bringing an index up to date did, in files.

    Attributes:
        embedded: Images that went through the model.
        known: Files whose bytes were embedded before, under another name or time.
        kept: Files that were not read.
        removed: Entries of files that are gone.
        broken: Files of the folder that cannot be read, those found earlier included.
    """

    embedded: int
    known: int
    kept: int
    removed: int
    broken: int


def find_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Images below a folder in a fixed order, by their ending: relative name and path; what is hidden is skipped."""
    endings = images.extensions()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            path = Path(place) / name
            if not is_hidden(name) and path.suffix.lower() in endings and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def path_of(model: Model, folder: Path, place: Path | None) -> Path:
    """The file of a folder's index for a model."""
    return (place or folder / FOLDER) / f"index-{model.identity[:12]}.safetensors"


def read(path: Path, model: Model) -> Index:
    """An index from its file; an empty one where there is none, or it is damaged or of another model."""
    if not path.is_file():
        return Index()
    try:
        tensors = load_file(path)
        stated = json.loads(tensors["entries"].tobytes())
        rows = tensors["embeddings"].astype(np.float32, copy=False)
        if (stated["version"], stated["model"], rows.shape) != (
            _VERSION,
            model.identity,
            (len(stated["digests"]), model.embed_dim),
        ):
            raise ValueError("it is of another model or version")
        vectors = dict(zip(stated["digests"], rows, strict=True))
        entries = {name: Entry(**entry) for name, entry in stated["entries"].items()}
        if any(not entry.fault and entry.sha256 not in vectors for entry in entries.values()):
            raise ValueError("an image has no embedding")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        logger.warning("index: '%s' is not used and made again: %s", path, " ".join(str(error).split()))
        return Index()
    return Index(entries, vectors)


def write(index: Index, path: Path, model: Model) -> None:
    """Write an index whole, without the embeddings of images that are gone.

    Raises:
        ConfigError: The place cannot be written.
    """
    digests = sorted({entry.sha256 for entry in index.entries.values() if not entry.fault})
    rows = [index.vectors[digest] for digest in digests]
    stated = {
        "version": _VERSION,
        "model": model.identity,
        "digests": digests,
        "entries": {name: asdict(entry) for name, entry in sorted(index.entries.items())},
    }
    tensors: dict[str, NDArray[Any]] = {
        "embeddings": np.stack(rows) if rows else np.zeros((0, model.embed_dim), np.float32),
        "entries": np.frombuffer(json.dumps(stated).encode(), np.uint8),  # names that are no Unicode stay escaped
    }
    with _replacing(path) as temporary:
        save_file(tensors, temporary)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside another one that takes its place when it is written; refused in one sentence where it cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.stat().st_size:
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"index: '{path.parent}' cannot be written ({error}), want --index, a folder for it."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def update(
    folder: Path,
    model: Model,
    *,
    place: Path | None = None,
    batch_size: int = 32,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Index, Update]:
    """The index of a folder, brought up to date and saved.

    Args:
        folder: Of images.
        model: Embeds what is new.
        place: Folder of the index; none = `.mobileclip` within the folder.
        batch_size: Images that are in memory at a time.
        max_pixels: Larger images are named as unreadable.

    Raises:
        DataError: The folder holds no images, or not one of them can be read.
        ConfigError: The index cannot be written.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}, want 1 or more.")
    path = path_of(model, folder, place)
    index = read(path, model)
    stats = {name: (file, file.stat()) for name, file in find_images(folder)}
    if not stats:
        raise DataError(f"folder: '{folder}' holds no images ({', '.join(sorted(images.extensions()))}).")
    removed = [name for name in index.entries if name not in stats]
    for name in removed:
        del index.entries[name]
    pending = {
        name: (file, stat.st_size, stat.st_mtime_ns)
        for name, (file, stat) in stats.items()
        if name not in index.entries
        or (index.entries[name].size, index.entries[name].changed) != (stat.st_size, stat.st_mtime_ns)
    }
    if pending:
        with _replacing(path) as probe:  # an index that cannot be kept is refused before images are embedded
            probe.touch()
    embedded = _embed(index, pending, model, path, batch_size=batch_size, max_pixels=max_pixels) if pending else 0
    if pending or removed or not path.is_file():
        write(index, path, model)
    read_well = sum(not index.entries[name].fault for name in pending)
    done = Update(embedded, read_well - embedded, len(stats) - len(pending), len(removed), len(index.broken))
    if not index.names:
        name, fault = next(iter(index.broken.items()))
        raise DataError(f"folder: none of the {len(stats)} images in '{folder}' can be read; '{name}': {fault}")
    return index, done


Pending = dict[str, tuple[Path, int, int]]


def _embed(index: Index, pending: Pending, model: Model, path: Path, *, batch_size: int, max_pixels: int) -> int:
    """Read what is pending and embed what is not known; how many images went through the model."""
    names, embedded, saved = list(pending), 0, 0

    def load(name: str) -> tuple[Entry, NDArray[np.uint8] | None]:
        return _load(*pending[name], model, index, max_pixels)

    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(total=len(names), desc="embedding", unit="image") as bar,
    ):
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            loaded = list(pool.map(load, part))
            fresh = {entry.sha256: pixels for entry, pixels in loaded if pixels is not None}
            if fresh:
                rows = model.encode_pixels(np.stack(list(fresh.values())))
                index.vectors |= dict(zip(fresh, rows, strict=True))
                embedded += len(fresh)
            index.entries |= {name: entry for name, (entry, _) in zip(part, loaded, strict=True)}
            bar.update(len(part))
            if start + len(part) - saved >= max(_SAVE_EVERY, saved // 4):
                # Entries of before that still wait for their turn are of files that have changed: not saved as known.
                waiting = set(names[start + len(part) :])
                known = {name: entry for name, entry in index.entries.items() if name not in waiting}
                write(Index(known, index.vectors), path, model)
                saved = start + len(part)
                logger.info("embedding: %d of %d images", saved, len(names))
    return embedded


def _load(
    file: Path, size: int, changed: int, model: Model, index: Index, max_pixels: int
) -> tuple[Entry, NDArray[np.uint8] | None]:  # fmt: skip
    """Digest of a file, and its pixels where they were not embedded before."""
    try:
        if size > MAX_BYTES:
            raise DataError(f"file: got {size} bytes, want at most {MAX_BYTES}.")
        data = file.read_bytes()
    except (OSError, DataError) as error:
        return Entry(size, changed, "", str(error) if isinstance(error, DataError) else f"{error.strerror}."), None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in index.vectors:
        return Entry(size, changed, sha256), None
    try:
        return Entry(size, changed, sha256), to_pixels(data, model.geometry, max_pixels=max_pixels)
    except DataError as error:
        return Entry(size, changed, sha256, str(error)), None
