"""Put a student's layouts and its card into a folder, or into a Hugging Face repository."""

import json
import logging
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.errors import ConfigError, DataError, IntegrityError, StorageError
from mobileclip.formats import contract
from mobileclip.formats.bundle import archive
from mobileclip.formats.contract import Contract
from mobileclip.sharing import layouts
from mobileclip.sharing.card import card
from mobileclip.sharing.layouts import IMMICH, OPEN_CLIP, TRANSFORMERS_JS

logger = logging.getLogger(__name__)

HUB = "hf-hub:"


@dataclass(frozen=True)
class Parts:
    """What there is to hand on.

    Attributes:
        student: Checkpoint folder, if there is one.
        programs: Export folder, if there is one.
        agreed: Its contract.
    """

    student: Path | None
    programs: Path | None
    agreed: Contract | None

    @property
    def layouts(self) -> list[str]:
        """Those that can be made of it."""
        return [*([OPEN_CLIP] if self.student else []), *([TRANSFORMERS_JS, IMMICH] if self.programs else [])]


def push(
    model: str, to: str, *, programs: str = "", wanted: Collection[str] = (), private: bool = False, message: str = ""
) -> list[str]:  # fmt: skip
    """Write the layouts of a student.

    Args:
        model: A student's folder, the output of distill, a bundle, an export folder, or the root of a run, which gives
            its student and its export.
        to: A new or empty folder, or `hf-hub:OWNER/NAME`.
        programs: The student's bundle or export folder, where `model` is not the root of a run.
        wanted: Layouts; empty = all that can be made.
        private: Whether a new repository is private.
        message: Of the commit.

    Returns:
        The files, sorted.

    Raises:
        ConfigError: There is nothing to hand on, a layout cannot be made of it, or the folder is not empty.
        DataError: The export lacks a program that a layout needs.
        IntegrityError: Student and programs do not belong together, or a file is not the one that was recorded.
        StorageError: The hub refuses.
    """
    unknown = sorted(set(wanted) - set(layouts.LAYOUTS))
    if unknown:
        raise ConfigError(f"layouts: got '{unknown[0]}', want some of {', '.join(layouts.LAYOUTS)}.")
    if not to.startswith(HUB):
        _check_folder(to)
    parts = gather(model, programs)
    missing = [name for name in wanted if name not in parts.layouts]
    if missing:
        needs = "a student's folder" if missing[0] == OPEN_CLIP else "--programs, a bundle or an export folder"
        raise ConfigError(f"layouts: got '{missing[0]}' without what it is made of, want {needs}.")
    chosen = [name for name in parts.layouts if name in wanted or not wanted]
    if parts.agreed is not None and set(chosen) - {OPEN_CLIP}:
        layouts.check_programs(parts.agreed)
    with tempfile.TemporaryDirectory(prefix="mobileclip-push-") as name:
        folder = Path(name) / "model"
        build(parts, folder, chosen, name=to.removeprefix(HUB) if to.startswith(HUB) else Path(to).name)
        if to.startswith(HUB):
            upload(folder, to.removeprefix(HUB), private=private, message=message)
        else:
            shutil.copytree(folder, to, dirs_exist_ok=True)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def build(parts: Parts, folder: Path, chosen: Collection[str], *, name: str) -> None:
    """Write the chosen layouts and the card.

    Args:
        parts: What there is.
        folder: A new folder.
        chosen: Layouts.
        name: Repository, or the folder's name, for the card.
    """
    stated: dict[str, Any] = {}
    if parts.student is not None:
        stated = json.loads((parts.student / layouts.CARD).read_text(encoding="utf-8"))
    if OPEN_CLIP in chosen and parts.student is not None:
        layouts.open_clip(parts.student, folder)
    if parts.programs is not None and parts.agreed is not None:
        if TRANSFORMERS_JS in chosen:
            layouts.transformers_js(parts.programs, parts.agreed, folder)
        if IMMICH in chosen:
            layouts.immich(parts.programs, parts.agreed, folder)
    support = (folder / f"mobileclip_{layouts.SUPPORT[0]}.py").is_file()
    text = card(name, stated=stated, agreed=parts.agreed, layouts=list(chosen), needs_support=support)
    (folder / "README.md").write_text(text, encoding="utf-8")


def gather(model: str, programs: str = "") -> Parts:
    """The student and the programs that a reference names.

    Args:
        model: As for `push`.
        programs: As for `push`.

    Raises:
        ConfigError: It names neither.
        IntegrityError: The student's weights are not its card's, or not those that the programs were made from.
    """
    student = next(
        (
            storage.join(model, *place)
            for place in ((), ("student",), ("distill", "student"))
            if not model.endswith(archive.SUFFIX) and storage.exists(storage.join(model, *place, layouts.CONFIG))
        ),
        "",
    )
    places = [programs] if programs else [model, storage.join(model, "export")]
    export = next(
        (p for p in places if p.endswith(archive.SUFFIX) or storage.exists(storage.join(p, contract.FILE_NAME))), ""
    )
    if programs and not export:
        raise ConfigError(f"programs: got '{programs}', want a bundle or an export folder.")
    if not student and not export:
        raise ConfigError(
            f"model: got '{model}', want a student's folder, the output of distill, the root of a run, a bundle or an "
            "export folder."
        )
    folder = storage.local_dir(student) if student else None
    unpacked = None
    if export:
        unpacked = archive.unpacked(export) if export.endswith(archive.SUFFIX) else storage.local_dir(export)
    agreed = contract.read(unpacked) if unpacked else None
    if folder is not None:
        _check_student(folder, agreed)
    return Parts(folder, unpacked, agreed)


def upload(folder: Path, repository: str, *, private: bool = False, message: str = "") -> str:
    """Make a repository of the hub where it is missing, and commit a folder to it; the commit's address.

    The hub's address and the token are huggingface_hub's own (`HF_ENDPOINT`, `HF_TOKEN` or `hf auth login`).

    Args:
        folder: What is committed.
        repository: `OWNER/NAME`.
        private: Whether a new repository is private.
        message: Of the commit.

    Raises:
        ConfigError: The name is none of a repository, or huggingface_hub is not installed.
        StorageError: The hub refuses, or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the hub's own, whose name changes
    except ModuleNotFoundError:
        raise ConfigError("push: needs the package 'huggingface_hub', install mobileclip-pipelines[train].") from None
    if repository.count("/") != 1:
        raise ConfigError(f"push: got '{HUB}{repository}', want {HUB}OWNER/NAME.")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message or "Push a student")
    except HFValidationError as error:
        raise ConfigError(f"push: got '{HUB}{repository}': {_first_line(error)}.") from None
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, httpx.HTTPError) as error:
        raise StorageError(f"push: the hub refuses '{repository}': {_first_line(error)}.") from None
    return str(done.commit_url)


def _check_folder(to: str) -> None:
    if "://" in to:
        raise ConfigError(f"push: got '{to}', want a folder or {HUB}OWNER/NAME.")
    path = Path(to)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"push: '{to}' is not empty, want a new or empty folder or {HUB}OWNER/NAME.")


def _check_student(folder: Path, agreed: Contract | None) -> None:
    """What is handed on is what was recorded."""
    for name in (layouts.CARD, layouts.WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"push: no {name} in the student's folder, want one that distill wrote.")
    got = storage.digest_file(folder / layouts.WEIGHTS)
    promised = json.loads((folder / layouts.CARD).read_text(encoding="utf-8")).get("sha256", got)
    if got != promised:
        raise IntegrityError(f"push: the student's weights have sha256 {got}, their card promises {promised}.")
    if agreed is not None and agreed.lineage.student_sha256 not in {"", got}:
        raise IntegrityError(
            f"push: the student's weights have sha256 {got[:12]}, the programs were made from "
            f"{agreed.lineage.student_sha256[:12]}: want the student that was exported."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200] or type(error).__name__
