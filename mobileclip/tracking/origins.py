"""Which tracked run made a stage's outputs: its commit, DVC experiment and Kubeflow run, which no record holds.

A record must be the same through every door, so it names neither run nor time. The run that made it has the same
stage, code, config and inputs, and it is found by these.
"""

import logging
from collections.abc import Mapping
from typing import Any

from mobileclip.errors import ConfigError
from mobileclip.lineage.trace import Node, Trace
from mobileclip.tracking import runs as tracking
from mobileclip.tracking.run_inputs import CODE_TAG, CONFIG_TAG, SHA_TAG, STAGE_TAG

logger = logging.getLogger(__name__)

_SHOWN = {
    "mlflow.source.git.commit": "git",
    "dvc.revision": "dvc",
    "dvc.experiment": "dvc experiment",
    "kfp.run_id": "kubeflow run",
}


def origins(found: Trace) -> dict[str, dict[str, str]]:
    """Run id, git commit, DVC and Kubeflow names by record digest, for the stages that were tracked.

    Empty where tracking is off or its store does not answer: a trace must work without it.
    """
    try:
        if not tracking.enabled() or not tracking.has_store():
            return {}
        client = tracking.connect()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = {node.digest: _run(client, experiments, node) for node in found.nodes}
    except Exception as error:  # noqa: BLE001 - the chain stands without it
        logger.warning("tracking: %s", error if isinstance(error, ConfigError) else type(error).__name__)
        return {}
    return {digest: _describe(run) for digest, run in runs.items() if run is not None}


def _run(client: Any, experiments: list[str], node: Node) -> Any:
    """The newest finished run with the record's stage, code, config and inputs."""
    tags = {STAGE_TAG: node.stage, CONFIG_TAG: node.record["config"], CODE_TAG: node.record["code"]}
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    for run in client.search_runs(experiments, f"{wanted} and attributes.status = 'FINISHED'", max_results=50):
        if _inputs(run) == node.record["inputs"]:
            return run
    return None


def _inputs(run: Any) -> dict[str, str]:
    found = {}
    for item in run.inputs.dataset_inputs:
        tags: Mapping[str, str] = {tag.key: tag.value for tag in item.tags}
        found[str(item.dataset.name)] = tags.get(SHA_TAG, "")
    return found


def _describe(run: Any) -> dict[str, str]:
    shown = {label: run.data.tags[tag] for tag, label in _SHOWN.items() if tag in run.data.tags}
    return {"run": str(run.info.run_id), **shown}
