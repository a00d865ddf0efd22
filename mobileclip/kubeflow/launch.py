"""A stage on several processes: `torchrun` on this machine, or a job on a cluster's nodes.

Both start `mobileclip.kubeflow.torchrun_worker` once per process. The stage's record decides whether there is
anything to do, so a launcher
may be started again at any time.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from mobileclip import stopping
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import run as kubeflow_run
from mobileclip.kubeflow.jobs import RUN_LABEL, Job, Kind
from mobileclip.kubeflow.journal import noted_failure
from mobileclip.kubeflow.run import WORKFLOW, Run

logger = logging.getLogger(__name__)

_OWN = ("MOBILECLIP_PARENT_KEY", "KFP_RUN_ID")  # read from this pod's labels, which the nodes' pods do not bear


@dataclass(frozen=True)
class Nodes:
    """On what a stage runs.

    Attributes:
        count: Nodes; on this machine always one.
        processes: Processes per node, one per accelerator.
        image: Image of the nodes.
        kind: `TrainJob` (Kubeflow Trainer) or `PyTorchJob` (the older training operator).
        runtime: ClusterTrainingRuntime of a TrainJob.
        deadline: Longest time of the job [s]; 0 = none.
    """

    count: int
    processes: int
    image: str
    kind: Kind = "TrainJob"
    runtime: str = "torch-distributed"
    deadline: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"nodes.{name}: got {getattr(self, name)}, want at least 1.")
        if self.kind not in {"TrainJob", "PyTorchJob"}:
            raise ConfigError(f"nodes.kind: got '{self.kind}', want TrainJob or PyTorchJob.")


def read_nodes(given: Mapping[str, Any]) -> Nodes:
    """Check what a component is told of its nodes; Kubeflow brings whole numbers as floats.

    Raises:
        ConfigError: A key is unknown or missing, or a value wrong.
    """
    names = {entry.name for entry in fields(Nodes)}
    for key in given:
        if key not in names:
            raise ConfigError(f"nodes.{key}: unknown key, want {', '.join(sorted(names))}.")
    for key in ("count", "processes", "image"):
        if key not in given:
            raise ConfigError(f"nodes.{key}: missing.")
    values: Any = {key: int(value) if isinstance(value, float) else value for key, value in given.items()}
    return Nodes(**values)


def run(
    stage: str, config: Mapping[str, Any], where: Run, *, nodes: Nodes, task: Any = None, **inputs: str
) -> kubeflow_run.Done:
    """Run a stage on several processes and wait for its end; nothing starts where its result is current.

    Args:
        stage: A stage that trains on several processes.
        config: Its whole section.
        where: The pipeline run.
        nodes: On what it runs.
        task: Kubeflow's TaskConfig, from which the nodes get resources, environment and volumes. Without resources
            in it this is no cluster, and the processes of one node run on this machine.
        inputs: Input URIs by name; empty = absent.

    Raises:
        ConfigError: Section, code or rights are not as wanted.
        MobileClipError: The processes failed, or left no result.
    """
    if not kubeflow_run.is_done(stage, config, where, **inputs):
        work = describe(stage, config, where, inputs)
        settings = asdict(task) if is_dataclass(task) and not isinstance(task, type) else {}
        if settings.get("resources"):
            with noted_failure(where.root, stage):
                on_cluster(job(stage, work, nodes, settings))
        else:
            on_this_machine(stage, work, nodes.processes)
        if not kubeflow_run.is_done(stage, config, where, **inputs):
            raise MobileClipError(f"{stage}: its processes ended well but left no result below '{where.root}'.")
    keywords: Any = inputs
    return kubeflow_run.run(stage, config, where, **keywords)


def describe(stage: str, config: Mapping[str, Any], where: Run, inputs: Mapping[str, str]) -> str:
    """What `mobileclip.kubeflow.torchrun_worker` is told: JSON."""
    given = {name: uri for name, uri in sorted(inputs.items()) if uri}
    place = {"root": where.root, "code": where.code, "generation": where.generation}
    return json.dumps({"stage": stage, "config": config, "inputs": given, **place}, sort_keys=True)


def job(stage: str, work: str, nodes: Nodes, settings: Mapping[str, Any]) -> Job:
    """The job of a stage.

    Args:
        stage: The stage.
        work: What `describe` gives.
        nodes: On what it runs.
        settings: Fields of Kubeflow's TaskConfig by name; None = empty.
    """
    return Job(
        stage=stage,
        image=nodes.image,
        command=("torchrun", "-m", "mobileclip.kubeflow.torchrun_worker", work),
        nodes=nodes.count,
        processes=nodes.processes,
        kind=nodes.kind,
        runtime=nodes.runtime,
        deadline=nodes.deadline,
        **inherited(settings),
    )


def inherited(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the pods of a job take over from the launcher's task: resources, environment, volumes, place, labels."""
    passed = [entry for entry in settings.get("env") or [] if "fieldRef" not in (entry.get("valueFrom") or {})]
    own = [{"name": name, "value": os.environ[name]} for name in _OWN if os.environ.get(name)]
    run_id = os.environ.get("KFP_RUN_ID", "")
    return {
        "resources": settings.get("resources") or {},
        "env": [*passed, *own],
        "volumes": settings.get("volumes") or [],
        "volume_mounts": settings.get("volume_mounts") or [],
        "node_selector": settings.get("node_selector") or {},
        "tolerations": settings.get("tolerations") or [],
        "affinity": settings.get("affinity") or {},
        "labels": {RUN_LABEL: run_id} if run_id else {},
    }


def on_this_machine(stage: str, work: str, processes: int) -> None:
    """Run the processes of a stage here, with `torchrun`.

    Raises:
        MobileClipError: One of them failed.
    """
    run_by = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    logger.info("%s: %d processes on this machine", stage, processes)
    code = stopping.run_program([*run_by, "-m", "mobileclip.kubeflow.torchrun_worker", work])
    if code:
        raise MobileClipError(f"{stage}: a process ended with exit code {code}, see its words above.")


def on_cluster(job: Job) -> None:
    """Run a job to its end on the cluster that this pod is a part of.

    Raises:
        ConfigError: The client library or rights are missing.
        MobileClipError: The job failed.
    """
    try:
        from mobileclip.kubeflow import cluster
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{job.stage}: the package '{error.name}' is missing, install mobileclip-pipelines[cluster]."
        ) from None
    cluster.run(cluster.connect(workflow=os.environ.get(WORKFLOW, "")), job)
