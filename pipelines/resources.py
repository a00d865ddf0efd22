"""What each stage gets on a cluster: one table by profile, and the names it expects there."""

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kfp import dsl, kubernetes

from components.images import IMAGE
from mobileclip.errors import ConfigError

Profile = Literal["local", "small", "cpu", "gpu", "multi-node"]
PROFILES: tuple[str, ...] = get_args(Profile)

PARALLEL = 32
"""Groups of a stage at once."""

SETTINGS = "mobileclip"
"""ConfigMap and Secret of this name hold addresses and credentials; `deploy/` has both as templates."""
MOUNT = "/data"
VOLUME = "mobileclip-data"
"""Claim mounted at `MOUNT`: raw pictures and pretrained towers, or the whole root where there is no object store."""

JOB_KIND = os.environ.get("MOBILECLIP_JOB_KIND") or "TrainJob"
"""Kubeflow Trainer's job, or `PyTorchJob` on clusters that still have the training operator; read at compile time."""

FAN_OUT = os.environ.get("MOBILECLIP_FAN_OUT") or "Job"
"""How caption and reinforce share their work out: `Job` (one Indexed Job, any number of groups) or `ParallelFor`
(Kubeflow's own loop, for accounts that may not start jobs; some 50 groups); read at compile time."""

FROM_CONFIG_MAP = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
FROM_SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_FROM_LABELS = {
    "MOBILECLIP_PARENT_KEY": "pipeline/runid",
    "KFP_RUN_ID": "pipeline/runid",
    "MOBILECLIP_WORKFLOW": "workflows.argoproj.io/workflow",
}


@dataclass(frozen=True)
class Resources:
    """What one task may use.

    Attributes:
        cpu: Cores.
        memory: Main memory.
        gpus: Accelerators.
        shared_memory: Size of /dev/shm, which loader processes need; empty = the runtime's 64 MiB.
        retries: Starts after a failure; every stage goes on from what is committed.
        nodes: Machines at once; with more than one the task is a launcher, and each of the nodes gets what stands here.
        cpu_request: Cores that a node must have free; empty = all of `cpu`.
        memory_request: Memory that a node must have free; empty = all of `memory`.
    """

    cpu: str
    memory: str
    gpus: int = 0
    shared_memory: str = ""
    retries: int = 2
    nodes: int = 1
    cpu_request: str = ""
    memory_request: str = ""


_SMALL = Resources("1", "2Gi", retries=1)
_CPU = Resources("4", "8Gi", shared_memory="2Gi")
_GPU = Resources("12", "48Gi", gpus=1, shared_memory="16Gi")

TABLE: dict[str, dict[str, Resources]] = {
    "cpu": {
        "prepare": Resources("2", "8Gi"),
        "train_teacher": _CPU,
        "filter": _CPU,
        "finetune_captioner": _CPU,
        "caption": _CPU,
        "reinforce": _CPU,
        "calibrate": Resources("2", "8Gi"),
        "distill": _CPU,
        "evaluate": _CPU,
        "export": Resources("4", "8Gi", retries=1),
        "promote": Resources("2", "4Gi", retries=1),
        "reuse": _SMALL,
        "compare": _SMALL,
        "finish": _SMALL,
    },
    "gpu": {
        "prepare": Resources("8", "32Gi"),
        "train_teacher": _GPU,
        "filter": _GPU,
        "finetune_captioner": _GPU,
        "caption": _GPU,
        "reinforce": _GPU,
        "calibrate": Resources("4", "32Gi"),
        "distill": _GPU,
        "evaluate": _GPU,
        "export": Resources("8", "32Gi", retries=1),
        "promote": Resources("2", "8Gi", retries=1),
        "reuse": _SMALL,
        "compare": _SMALL,
        "finish": _SMALL,
    },
}
# Nodes of two to four cores, such as kind and minikube make: a stage asks for little and takes what is free.
_LITTLE = Resources("4", "6Gi", shared_memory="1Gi", cpu_request="250m", memory_request="1Gi")
TABLE["small"] = {
    **dict.fromkeys(TABLE["cpu"], _LITTLE),
    **dict.fromkeys(
        ("reuse", "compare", "finish"), Resources("1", "2Gi", retries=1, cpu_request="50m", memory_request="256Mi")
    ),
}
TABLE["multi-node"] = {
    **TABLE["gpu"],
    "distill": Resources("96", "768Gi", gpus=8, shared_memory="64Gi", retries=4, nodes=2),
}


def nodes(stage: str, profile: str) -> dict[str, Any]:
    """What a launcher is told of its nodes; empty where the stage runs in its own pod."""
    if profile == "local" or TABLE[profile][stage].nodes == 1:
        return {}
    row = TABLE[profile][stage]
    return {"count": row.nodes, "processes": max(1, row.gpus), "image": IMAGE, "kind": JOB_KIND}


def pods(stage: str, profile: str) -> dict[str, Any]:
    """What a launcher is told of the pods of its groups; empty where a loop of Kubeflow's starts them.

    Raises:
        ConfigError: `MOBILECLIP_FAN_OUT` is something else.
    """
    if FAN_OUT not in {"Job", "ParallelFor"}:
        raise ConfigError(f"MOBILECLIP_FAN_OUT: got '{FAN_OUT}', want Job or ParallelFor.")
    if profile == "local" or FAN_OUT == "ParallelFor":
        return {}
    return {"image": IMAGE, "parallel": PARALLEL, "retries": TABLE[profile][stage].retries}


def apply(task: dsl.PipelineTask, stage: str, profile: str) -> dsl.PipelineTask:
    """Give a task its resources, environment and volumes; nothing in the profile `local`.

    Args:
        task: The task.
        stage: Row of the table.
        profile: Column of the table.
    """
    if profile == "local":
        return task
    row = TABLE[profile][stage]
    task.set_cpu_request(row.cpu_request or row.cpu).set_cpu_limit(row.cpu)
    task.set_memory_request(row.memory_request or row.memory).set_memory_limit(row.memory)
    if row.gpus:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(row.gpus)
        kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    if row.shared_memory:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=row.shared_memory
        )
    if row.retries and stage != "finish":
        task.set_retry(row.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    return _connect(task)


def _connect(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Addresses, credentials, the data volume, and the key by which all pods of a run find their MLflow parent."""
    kubernetes.use_config_map_as_env(task, SETTINGS, {name: name for name in FROM_CONFIG_MAP}, optional=True)
    kubernetes.use_secret_as_env(task, SETTINGS, {name: name for name in FROM_SECRET}, optional=True)
    for variable, label in _FROM_LABELS.items():
        kubernetes.use_field_path_as_env(task, variable, f"metadata.labels['{label}']")
    return kubernetes.mount_pvc(task, pvc_name=VOLUME, mount_path=MOUNT)
