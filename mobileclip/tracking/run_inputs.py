"""What a run is told at its start: parameters, dataset inputs, and the digests that its record will hold."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from mobileclip import storage
from mobileclip.errors import MobileClipError
from mobileclip.lineage import code, provenance

logger = logging.getLogger(__name__)

STAGE_TAG, CONFIG_TAG, CODE_TAG, SHA_TAG = "mobileclip.stage", "mobileclip.config", "mobileclip.code", "sha256"
_MAX_PARAM_CHARS = 6000  # MLflow's own limits
_MAX_PARAMS = 100
_DIGEST_CHARS = 32


def describe(
    client: Any, entities: Any, run_id: str, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    """Log them; a resumed run keeps the parameters it has (MLflow never changes one).

    Args:
        client: An `MlflowClient`.
        entities: The module `mlflow.entities`.
        run_id: The run.
        stage: Name of the stage.
        config: Its resolved section.
        inputs: Input URIs by name.
    """
    known = client.get_run(run_id).data.params
    flat = {k: v[:_MAX_PARAM_CHARS] for k, v in provenance.flatten(config, stage).items()}
    changed = sorted(k for k, v in flat.items() if known.get(k, v) != v)
    if changed:
        logger.warning("tracking: run %s has other values of %s, they stay.", run_id, ", ".join(changed))
    params = [entities.Param(k, v) for k, v in flat.items() if k not in known]
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS], synchronous=True)
    config_digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    # With the inputs these are the record's own digests: `origins` finds the run of a record by them.
    tags = {STAGE_TAG: stage, CONFIG_TAG: config_digest, CODE_TAG: code.code_digest(stage)}
    client.log_batch(run_id, tags=[entities.RunTag(k, v) for k, v in tags.items()], synchronous=True)
    if inputs:
        client.log_inputs(run_id, [_dataset(entities, name, uri, stage) for name, uri in sorted(inputs.items())])


def _dataset(entities: Any, name: str, uri: str, stage: str) -> Any:
    from mobileclip.lineage.record import input_digest

    try:
        digest = input_digest(uri)
    except MobileClipError:
        digest = "unknown"
    kind = "s3" if storage.is_s3(uri) else "local"
    # MLflow's digest holds 36 characters; the whole one is a tag.
    dataset = entities.Dataset(name, digest[:_DIGEST_CHARS], kind, json.dumps({"uri": uri}))
    tags = {"mlflow.data.context": stage, SHA_TAG: digest}
    return entities.DatasetInput(dataset, [entities.InputTag(k, v) for k, v in tags.items()])
