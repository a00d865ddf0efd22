"""The bundle: one zip with all an app needs, the same bytes for the same export, refused whole if a byte is wrong.

`SHA256SUMS` lists every other member in the form `sha256sum -c` reads; the contract holds the digests of programs and
files once more. Programs are stored, not compressed: weights shrink by a few percent only, and a phone can map them
straight from the archive.
"""

import atexit
import hashlib
import io
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from mobileclip import storage
from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.formats import contract
from mobileclip.formats.bundle import texts as bundle_texts
from mobileclip.formats.contract import Contract
from mobileclip.formats.digests import combine

SUMS = "SHA256SUMS"
CARD, NOTICES, SCHEMA = "MODEL_CARD.md", "NOTICES.md", "contract.schema.json"
SUFFIX = ".zip"
PATTERN = f"mobileclip-*{SUFFIX}"

Source = Path | bytes

_TIME = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20
_MAX_SUMS_BYTES = 1 << 20
# No honest member shrinks to a sixty-fourth; a few megabytes that unpack to terabytes do.
_MAX_RATIO = 64


def file_name(agreed: Contract, *, version: str = "") -> str:
    """`mobileclip-STUDENT-VERSION.zip`; without a version the first 12 digits of the weights' digest.

    Raises:
        ConfigError: The version would not do in a file name.
    """
    if version and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", version):
        raise ConfigError(f"bundle: version is '{version}', want letters, digits, dots, plus and minus signs.")
    student = re.sub(r"[^a-z0-9]+", "-", agreed.model.lower()).strip("-").removeprefix("mobileclip-") or "student"
    return f"mobileclip-{student}-{version or agreed.lineage.student_sha256[:12] or 'unsaved'}{SUFFIX}"


def write(export: Path, target: Path, *, version: str = "", extra: Mapping[str, Source] | None = None) -> Path:
    """Bundle an export folder.

    Args:
        export: Output folder of export.
        target: Folder of the bundle, made where it is missing.
        version: Version in its name and card; empty = from the weights' digest.
        extra: Further members by name, the page for example.

    Returns:
        The bundle.

    Raises:
        IntegrityError: A file is not the one the contract was written for.
        DataError: The folder is no export.
    """
    agreed = contract.read(export)
    stored = {program.path for program in agreed.programs}
    members: dict[str, Source] = {contract.FILE_NAME: export / contract.FILE_NAME, SCHEMA: contract.schema()}
    for file in (*agreed.programs, *agreed.files):
        members |= _files(contract.check(export, file), file.path)
    further = dict(extra or {})
    members[CARD] = bundle_texts.card(agreed, version=version).encode()
    members[NOTICES] = bundle_texts.notices(
        agreed, with_page=any(name.startswith("page/") for name in further)
    ).encode()
    members |= further
    path = target / file_name(agreed, version=version)
    target.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_zip(temporary, members, stored)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def verify(path: Path) -> Contract:
    """Read every byte of a bundle and compare it with its checksums.

    Raises:
        DataError: There is no such file.
        IntegrityError: It is damaged, or holds what is not listed.
    """
    return _read(path, None)


def unpack(path: Path, folder: Path) -> Contract:
    """Verify a bundle and write its members below `folder`; nothing is left there if it is refused.

    Args:
        path: The bundle.
        folder: A folder that does not exist yet.

    Raises:
        DataError: There is no such file, or `folder` exists.
        IntegrityError: It is damaged, or holds what is not listed.
    """
    if folder.exists():
        raise DataError(f"bundle: '{folder}' exists, want a new folder to unpack to.")
    folder.mkdir(parents=True)
    try:
        return _read(path, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise


def unpacked(uri: str | Path) -> Path:
    """A verified, private copy of a bundle's members that lives as long as this process.

    Args:
        uri: Local path or `s3://` object.

    Raises:
        DataError: There is no such file.
        IntegrityError: It is damaged, or holds what is not listed.
    """
    parent = Path(tempfile.mkdtemp(prefix="mobileclip-bundle-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    path = storage.local_copy(uri) if storage.is_s3(uri) else Path(uri)
    unpack(path, parent / "bundle")
    return parent / "bundle"


def _files(path: Path, name: str) -> dict[str, Source]:
    """A file, or all files of a folder (Core ML packages are folders)."""
    if path.is_file():
        return {name: path}
    return {f"{name}/{p.relative_to(path).as_posix()}": p for p in path.rglob("*") if p.is_file()}


def _write_zip(path: Path, members: Mapping[str, Source], stored: set[str]) -> None:
    sums = []
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name in sorted(members):
            contract.inside(name)
            in_program = any(name == program or name.startswith(f"{program}/") for program in stored)
            digest = _add(archive, name, members[name], compress=not in_program)
            sums.append(f"{digest}  {name}\n")
        _add(archive, SUMS, "".join(sums).encode(), compress=True)


def _add(archive: zipfile.ZipFile, name: str, source: Source, *, compress: bool) -> str:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    info.file_size = len(source) if isinstance(source, bytes) else source.stat().st_size
    opened: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with opened as reader, archive.open(info, "w") as writer:
        return _copy(reader, writer)


def _read(path: Path, folder: Path | None) -> Contract:
    if not path.is_file():
        raise DataError(f"bundle: no file '{path}', want a mobileclip-STUDENT-VERSION{SUFFIX}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, folder, path)
    except _DAMAGE as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if not zipfile.is_zipfile(path):
            reason = f"its {path.stat().st_size} bytes end without a zip's directory, as those of a cut download do"
        raise IntegrityError(f"bundle: '{path.name}' cannot be read, it is damaged: {reason}.") from None


def _read_zip(archive: zipfile.ZipFile, folder: Path | None, path: Path) -> Contract:
    promised = _checksums(archive, path)
    for info in archive.infolist():
        got = _extract(archive, info, None if folder is None else folder / info.filename)
        if info.filename != SUMS and got != promised[info.filename]:
            raise IntegrityError(
                f"bundle: '{info.filename}' in '{path.name}' has sha256 {got}, {SUMS} promises "
                f"{promised[info.filename]}; the bundle is damaged or was changed."
            )
    agreed = contract.parse(archive.read(contract.FILE_NAME))
    _compare(agreed, promised, {info.filename: info.file_size for info in archive.infolist()}, path)
    return agreed


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path | None) -> str:
    """Read a member, write it if asked to; its digest."""
    with archive.open(info) as reader:
        if target is None:
            return _copy(reader, None)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as writer:
            return _copy(reader, writer)


def _checksums(archive: zipfile.ZipFile, path: Path) -> dict[str, str]:
    """The listed digests, after the list of members was found to be the same and harmless."""
    infos = {info.filename: info for info in archive.infolist()}
    sums = infos.get(SUMS)
    if sums is None or contract.FILE_NAME not in infos or sums.file_size > _MAX_SUMS_BYTES:
        raise IntegrityError(f"bundle: '{path.name}' holds no {SUMS} or no {contract.FILE_NAME}; it is no bundle.")
    lines = archive.read(sums).decode().splitlines()
    promised = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    unsafe = [name for name, info in infos.items() if not _is_harmless(name, info)]
    if unsafe or len({name.casefold() for name in infos}) != len(archive.infolist()):
        raise IntegrityError(f"bundle: '{path.name}' holds {unsafe[:1] or 'a name'} that leads out of it, or twice.")
    if below := sorted(str(above) for name in infos for above in PurePosixPath(name).parents if str(above) in infos):
        raise IntegrityError(f"bundle: '{path.name}' holds '{below[0]}' as a file and as a folder; it was changed.")
    if different := sorted(promised.keys() ^ (infos.keys() - {SUMS})):
        raise IntegrityError(f"bundle: '{path.name}' and its {SUMS} disagree about '{different[0]}'; it was changed.")
    if sum(info.file_size for info in infos.values()) > _MAX_RATIO * (path.stat().st_size + _CHUNK):
        raise IntegrityError(f"bundle: '{path.name}' unpacks to more than {_MAX_RATIO} times its size; refused.")
    return promised


def _is_harmless(name: str, info: zipfile.ZipInfo) -> bool:
    try:
        contract.inside(name)
    except ValueError:
        return False
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind in {0, stat.S_IFREG} and not info.flag_bits & 1


def _compare(agreed: Contract, promised: Mapping[str, str], sizes: Mapping[str, int], path: Path) -> None:
    """The contract's files are the bundle's."""
    for file in (*agreed.programs, *agreed.files):
        got = promised.get(file.path)
        if got is None:
            prefix = f"{file.path}/"
            parts = {
                name.removeprefix(prefix): {"bytes": sizes[name], "sha256": promised[name]}
                for name in sorted(promised)
                if name.startswith(prefix)
            }
            got = combine(parts)["sha256"] if parts else "missing"
        if got != file.sha256:
            raise IntegrityError(
                f"bundle: '{file.path}' in '{path.name}' is not the file its contract was written for ({got})."
            )


def _copy(reader: IO[bytes], writer: IO[bytes] | None) -> str:
    digest = hashlib.sha256()
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
        if writer is not None:
            writer.write(chunk)
    return digest.hexdigest()


_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, ValueError,
)  # fmt: skip
