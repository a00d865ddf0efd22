"""How tasks run on this machine: as its own processes, or in containers of the project's image."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from kfp import local

from mobileclip.errors import ConfigError
from pipelines.resources import FROM_CONFIG_MAP, FROM_SECRET

logger = logging.getLogger(__name__)

_USER = 10001  # of the image
_OWN = ("MOBILECLIP_PARENT_RUN_ID", "MOBILECLIP_TRACKING", "MOBILECLIP_PROCESSES", "OMP_NUM_THREADS")


def processes() -> local.SubprocessRunner:
    """Tasks as processes with this very interpreter."""
    return local.SubprocessRunner(use_venv=False)


def containers(root: Path, inputs: Iterable[str]) -> local.DockerRunner:
    """Tasks in containers, as a user without rights; the run's root and its inputs are mounted where they are.

    The user is this one, or the image's own where this is root; its group is 0, to which the root is opened.

    Args:
        root: Folder of the run.
        inputs: Folders from outside, mounted read-only; URIs are left alone.

    Raises:
        ConfigError: An input is closed to that user.
    """
    from docker.types import Mount

    state = root / ".kubeflow"
    for own in (root, state):
        own.mkdir(parents=True, exist_ok=True)
        own.chmod(own.stat().st_mode | 0o070)
    folders = [folder for folder in inputs if folder and "://" not in folder]
    for folder in folders:
        if not os.getuid() and not _is_open(Path(folder)):
            raise ConfigError(f"docker: user {_USER} of the containers may not read '{folder}', want mode o+rX.")
    mounts = [Mount(str(root), str(root), type="bind")]
    mounts += [Mount(folder, folder, type="bind", read_only=True) for folder in dict.fromkeys(folders)]
    return local.DockerRunner(
        user=f"{os.getuid() or _USER}:0",
        network_mode="host",
        working_dir=str(state),
        mounts=mounts,
        environment=_environment(state),
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        shm_size="1g",
    )


def _environment(state: Path) -> dict[str, str]:
    names = (*FROM_CONFIG_MAP, *FROM_SECRET, *_OWN)
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not found.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        logger.info("MLFLOW_TRACKING_URI names no server that containers reach: runs are not tracked")
        found["MLFLOW_TRACKING_URI"] = f"sqlite:///{state / 'mlflow.db'}"
        found["MOBILECLIP_TRACKING"] = "off"
    return found


def _is_open(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return mode & 0o050 == 0o050 or mode & 0o005 == 0o005
