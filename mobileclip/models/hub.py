"""The Hugging Face hub: files of a repository by its own client and cache, and the license its card names."""

import functools
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml
from huggingface_hub import constants, hf_hub_download, list_repo_files, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from mobileclip.errors import DataError
from mobileclip.models.checkpoints import SUFFIXES
from mobileclip.models.published import license_of


def file(repository: str, name: str) -> Path | None:
    """A local copy of one file; None where the repository has none of that name.

    Args:
        repository: `OWNER/NAME`.
        name: File inside it.

    Raises:
        DataError: There is no such repository, or it cannot be reached and is not in the cache.
    """
    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError:
        if _cached(repository):  # off-line, and the repository was fetched before without this file
            return None
        raise DataError(f"model: 'hf-hub:{repository}' cannot be reached, and it is not in the hub's cache.") from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")[:160]
        raise DataError(f"model: 'hf-hub:{repository}' cannot be read: {reason}.") from None


def weights(repository: str) -> Path | None:
    """The one weights file of a repository that holds a lone one, such as `mobileclip_s0.pt`."""
    try:
        names = list_repo_files(repository)
    except (HfHubHTTPError, OSError):
        names = _cached(repository)
    found = sorted(name for name in names if name.endswith(SUFFIXES) and "/" not in name)
    return file(repository, found[0]) if len(found) == 1 else None


def license_of_card(repository: str) -> str:
    """License by the repository's card (`license`, or `license_name` where it is `other`), else by its owner."""
    card = file(repository, "README.md")
    known = license_of(repository)
    if card is None:
        return known
    text = card.read_text(encoding="utf-8", errors="replace")
    parts = text.split("---", 2) if text.startswith("---") else []
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 else {}
    except yaml.YAMLError:
        head = {}
    named = str(head.get("license") or "") if isinstance(head, dict) else ""
    named = str(head.get("license_name") or named) if named == "other" else named
    return named if named and named != "other" else known


def is_reachable(repository: str, *, seconds: float = 3.0) -> bool:
    """Whether a repository's files can be had: from the cache, or from the hub, whose server answers in time.

    Only the connection is tried: whether the repository exists, the download says.
    """
    if _cached(repository):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    return bool(getproxies()) or _answers(constants.ENDPOINT, seconds)


@functools.cache
def _answers(endpoint: str, seconds: float) -> bool:
    place = urlsplit(endpoint)
    try:
        with socket.create_connection(
            (place.hostname or "", place.port or (443 if place.scheme == "https" else 80)), seconds
        ):
            return True
    except OSError:
        return False


def _cached(repository: str) -> list[str]:
    """Names of the files of a repository that are in the local cache."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    return sorted(
        {
            str(found.file_path.relative_to(revision.snapshot_path))
            for repo in repositories
            if repo.repo_id == repository
            for revision in repo.revisions
            for found in revision.files
        }
    )
