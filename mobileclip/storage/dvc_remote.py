"""Write folders straight into a DVC remote, with neither DVC nor git: what a training pod can do.

Layout of DVC 3: a file lies at `REMOTE/files/md5/ab/cdef...` by its MD5; a folder has a `.dir` object beside its files
that lists them. The pointer (`FOLDER.dvc`) goes into git: `dvc pull` fetches by it, and `dvc commit` of the same
files gives the same digests. MD5 is only DVC's name for a file; the proof is the sha256 in manifests and records.
"""

import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from mobileclip import storage
from mobileclip.errors import DataError

# Each worker holds one file in memory: a shard is 50 to 500 MB.
_WORKERS = 4
# DVC leaves these out of a folder's digest, so a folder with one of them would not compare equal.
_IGNORED = frozenset({".git", ".hg", ".dvc", ".dvcignore"})


@dataclass(frozen=True)
class Published:
    """A folder in a DVC remote.

    Attributes:
        path: Name of the folder, as the pointer gives it.
        md5: Digest of its list of files, with `.dir` at the end.
        size: Bytes of all files.
        files: Number of files.
        sent: Number of objects that the remote did not have before.
    """

    path: str
    md5: str
    size: int
    files: int
    sent: int

    def pointer(self) -> bytes:
        """The text of the `.dvc` file, as DVC writes it."""
        out = {"md5": self.md5, "size": self.size, "nfiles": self.files, "hash": "md5", "path": self.path}
        return yaml.safe_dump({"outs": [out]}, sort_keys=False, allow_unicode=True).encode()


def publish(folder: str, *, remote: str, progress: Callable[[str], object] = lambda _: None) -> Published:
    """Copy a folder into a DVC remote; what is there already is not sent again.

    The list of files is written last, so a folder that the remote knows is whole in it, also after a kill.

    Args:
        folder: Local folder or `s3://` prefix; files that are being written (`*.tmp`) are left out.
        remote: The DVC remote, a local folder or `s3://` prefix.
        progress: Called with the name of each file that is in the remote.

    Raises:
        DataError: There is no file, or one that DVC would not count.
    """
    names = storage.list_files(folder)
    if not names:
        raise DataError(f"publish: no file in '{folder}', want the output folder of a stage or a raw dataset.")
    for name in names:
        if _IGNORED & set(name.split("/")):
            raise DataError(f"publish: '{name}' in '{folder}' is a file that DVC ignores, want data alone.")

    def send(name: str) -> tuple[dict[str, str], int, bool]:
        data = storage.read_bytes(storage.join(folder, name))
        md5 = _md5(data)
        new = _put(remote, md5, data)
        progress(name)
        return {"md5": md5, "relpath": name}, len(data), new

    with ThreadPoolExecutor(_WORKERS) as pool:
        sent = list(pool.map(send, names))
    listing = _listing([entry for entry, _, _ in sent])
    md5 = f"{_md5(listing)}.dir"
    new = [fresh for _, _, fresh in sent] + [_put(remote, md5, listing)]
    name = posixpath.basename(folder.rstrip("/"))
    return Published(name, md5, sum(size for _, size, _ in sent), len(names), sum(new))


def folder_digest(folder: str) -> str:
    """What DVC names a local folder by: the MD5 of its list of files, with `.dir` at the end."""
    names = [name for name in storage.list_files(folder) if not _IGNORED & set(name.split("/"))]
    entries = []
    for name in names:
        with Path(folder, name).open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        entries.append({"md5": digest.hexdigest(), "relpath": name})
    return f"{_md5(_listing(entries))}.dir"


def _listing(entries: Sequence[Mapping[str, str]]) -> bytes:
    """Byte for byte DVC's own form of the list: sorted by name, keys sorted, ASCII."""
    return json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()


def _put(remote: str, md5: str, data: bytes) -> bool:
    """Store an object under its digest; whether it was new."""
    uri = storage.join(remote, "files", "md5", md5[:2], md5[2:])
    return not storage.exists(uri) and storage.put_if_absent(uri, data)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
