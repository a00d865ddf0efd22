"""Where a run comes from: code revision, DVC experiment, pipeline run; and plain values for tracking and lineage."""

import getpass
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from mobileclip import __version__

# Environment variable to tag: what pipelines, DVC and CI tell a process about itself.
_FROM_ENVIRONMENT = {
    "KFP_RUN_ID": "kfp.run_id",
    "KFP_PIPELINE_NAME": "kfp.pipeline",
    "DVC_STAGE": "dvc.stage",
    "DVC_EXP_NAME": "dvc.experiment",
    "MOBILECLIP_DVC_REVISION": "dvc.revision",
}


def tags() -> dict[str, str]:
    """Tags of a tracked run: package version, git commit, DVC and Kubeflow names where they are known."""
    found = {"mobileclip.version": __version__}
    commit = git_commit()
    if commit:
        found["mlflow.source.git.commit"] = commit
    for variable, tag in _FROM_ENVIRONMENT.items():
        if os.environ.get(variable):
            found[tag] = os.environ[variable]
    return found


def git_commit() -> str:
    """The commit of the working folder: `MOBILECLIP_GIT_COMMIT` (images hold no .git), else git's; empty if none."""
    if os.environ.get("MOBILECLIP_GIT_COMMIT"):
        return os.environ["MOBILECLIP_GIT_COMMIT"]
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted names, `distill.training.steps` as in error messages; plain lists stay JSON."""
    if isinstance(value, Mapping) and value:
        pairs = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        pairs = [flatten(v, f"{prefix}.{i}") for i, v in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    return {k: v for pair in pairs for k, v in pair.items()}


def actor() -> str:
    """Who acts: `MOBILECLIP_ACTOR` (pods and CI have no useful login), else the login name."""
    if os.environ.get("MOBILECLIP_ACTOR"):
        return os.environ["MOBILECLIP_ACTOR"]
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id often has no name
        return "unknown"
