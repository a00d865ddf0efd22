"""A stage's groups as one Indexed Job, one task in the graph: retries, evictions, parallelism are Kubernetes' own."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from mobileclip.errors import ConfigError
from mobileclip.kubeflow import launch
from mobileclip.kubeflow import run as kubeflow_run
from mobileclip.kubeflow.jobs import Job
from mobileclip.kubeflow.journal import noted_failure
from mobileclip.kubeflow.run import Run

logger = logging.getLogger(__name__)


def run(
    stage: str,
    config: Mapping[str, Any],
    where: Run,
    *,
    groups: Sequence[str],
    pods: Mapping[str, Any],
    task: Any = None,
    **inputs: str,
) -> kubeflow_run.Done:
    """Run all groups of a stage and put their work together; nothing starts where the result is current.

    Args:
        stage: A stage that fans out.
        config: Its whole section.
        where: The pipeline run.
        groups: `0/N` to `N-1/N`, or `all/N`.
        pods: `image` of the pods, how many run at once (`parallel`), and further starts of each (`retries`).
        task: Kubeflow's TaskConfig, from which the pods get resources, environment and volumes. Without resources in it
            this is no cluster, and the groups run here in turn.
        inputs: Input URIs by name; empty = absent.

    Raises:
        ConfigError: Section, groups or rights are not as wanted.
        MobileClipError: A group failed for good.
    """
    count = kubeflow_run.count_groups(groups)
    keywords: Any = inputs
    if count > 1 and not kubeflow_run.is_done(stage, config, where, **inputs):
        settings = vars(task) if is_dataclass(task) and not isinstance(task, type) else {}
        if settings.get("resources"):
            work = launch.describe(stage, config, where, inputs)
            with noted_failure(where.root, stage):
                launch.on_cluster(job(stage, work, count, pods, settings))
        else:
            for index in range(count):
                kubeflow_run.run_group(stage, config, where, group=f"{index}/{count}", **keywords)
    return kubeflow_run.run(stage, config, where, merge=count, **keywords)


def job(stage: str, work: str, count: int, pods: Mapping[str, Any], settings: Mapping[str, Any]) -> Job:
    """The Indexed Job of a stage.

    Args:
        stage: The stage.
        work: What `launch.describe` gives.
        count: Number of groups.
        pods: As for `run`; Kubeflow brings whole numbers as floats.
        settings: Fields of Kubeflow's TaskConfig by name.

    Raises:
        ConfigError: A key of `pods` is missing or unknown.
    """
    if pods.keys() != {"image", "parallel", "retries"}:
        raise ConfigError(f"pods: got {', '.join(sorted(pods)) or 'nothing'}, want image, parallel, retries.")
    return Job(
        stage=stage,
        image=str(pods["image"]),
        command=("python", "-m", "mobileclip.kubeflow.group_worker", str(count), work),
        nodes=count,
        kind="Job",
        parallel=int(pods["parallel"]),
        retries=int(pods["retries"]),
        **launch.inherited(settings),
    )
