"""A params file with which the whole chain runs on the drawn pictures of `tiny_source` in seconds a stage."""

import json
from pathlib import Path
from typing import Any

import yaml

from mobileclip.config import Params, Teacher
from mobileclip.config.params_file import render

Values = dict[str, Any]

_TRAINING = {"steps": 2, "batch_size": 8, "workers": 0, "log_every": 1, "checkpoint_every": 0}


def params() -> Values:
    """Sections with tiny models and two steps a training."""
    values = Params().model_dump(mode="json")
    for training in ("finetune_captioner.pretrain", "finetune_captioner.finetune", "distill.training"):
        stage, key = training.split(".")
        _shorten(values[stage][key])
    teacher = Teacher(name="teacher", model="tiny-mci").model_dump(mode="json")
    values["train_teacher"]["teachers"] = [
        {**teacher, "training": json.loads(json.dumps(values["distill"]["training"]))}
    ]
    values["prepare"]["shard_samples"] = 8
    values["finetune_captioner"] |= {"held_out_samples": 4, "finetune_field": "descriptions"}
    values["caption"] |= {"num_captions": 2, "max_degenerate_share": 1.0, "score_samples": 4, "max_tokens": 8}
    values["reinforce"]["views"]["num_views"] = 2
    values["calibrate"] |= {"batch_size": 8, "batches": 1, "scales": [10.0, 50.0]}
    values["distill"]["control"] = True
    values["evaluate"] |= {
        "classifications": [{"field": "subgroup", "templates": ["a {}"]}], "bootstrap": 50, "gallery": 2,
    }  # fmt: skip
    # Untrained towers see all pictures alike, so relative errors are large.
    values["export"] |= {"samples": 4, "zero_shot_field": "group", "max_error_float32": 0.1, "latency_runs": 0}
    return values


def write_params(path: Path, values: Values | None = None) -> Path:
    """A params file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values or params(), sort_keys=False))
    return path


def write_short_params(path: Path, values: Values | None = None) -> Path:
    """A params file as a person writes it: what differs from the defaults."""
    path.write_text(render(Params.model_validate(values or params()), short=True))
    return path


def _shorten(training: Values) -> None:
    assert training.keys() >= _TRAINING.keys()
    training |= _TRAINING
    training["optimizer"]["warmup_steps"] = 1
