"""Every key of params.yaml, one section per stage, with type, range and meaning.

Importing this package loads neither torch nor any stage, so pipelines compile and the CLI prints help fast.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from mobileclip.config.base import Dtype, Name, Section, Share, Split
from mobileclip.config.data import Calibrate, Caption, Filter, Prepare, Reinforce, TeacherRef, Views
from mobileclip.config.recipes import apply
from mobileclip.config.release import Classification, Evaluate, Export, Gate, LabelBank, Promote
from mobileclip.config.training import Distill, FinetuneCaptioner, Optimizer, Teacher, Training, TrainTeacher
from mobileclip.errors import ConfigError

__all__ = [
    "STAGES",
    "Calibrate",
    "Caption",
    "Classification",
    "Distill",
    "Dtype",
    "Evaluate",
    "Export",
    "Filter",
    "FinetuneCaptioner",
    "Gate",
    "LabelBank",
    "Name",
    "Optimizer",
    "Params",
    "Prepare",
    "Promote",
    "Reinforce",
    "Section",
    "Share",
    "Split",
    "Teacher",
    "TeacherRef",
    "TrainTeacher",
    "Training",
    "Views",
    "check_section",
    "read_params",
]


class Params(Section):
    """params.yaml: one section per stage."""

    prepare: Prepare = Prepare()
    train_teacher: TrainTeacher = TrainTeacher()
    filter: Filter = Filter()
    finetune_captioner: FinetuneCaptioner = FinetuneCaptioner()
    caption: Caption = Caption()
    reinforce: Reinforce = Reinforce()
    calibrate: Calibrate = Calibrate()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    promote: Promote = Promote()

    @model_validator(mode="after")
    def _check_names(self) -> "Params":
        for label, names in (
            ("train_teacher.teachers", [t.name for t in self.train_teacher.teachers]),
            ("reinforce.teachers", [t.name for t in self.reinforce.teachers]),
        ):
            if len(names) != len(set(names)):
                raise ValueError(f"{label}: names must differ, got {names}")
        return self


STAGES: tuple[str, ...] = tuple(Params.model_fields)


def check_section(stage: str, section: Section | Mapping[str, Any]) -> Section:
    """Validate one stage's section as it comes from outside.

    Args:
        stage: One of `STAGES`.
        section: A mapping that names **every** key (a half-filled section would silently take code defaults that
            params.yaml never showed), or an already validated section.

    Raises:
        ConfigError: One sentence per wrong key, each with its dotted name.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage: got '{stage}', want one of {', '.join(STAGES)}.")
    if isinstance(section, Section):
        wanted = type(getattr(Params(), stage))
        if not isinstance(section, wanted):
            raise ConfigError(f"{stage}: got a section of type {type(section).__name__}, want {wanted.__name__}.")
        return section
    checked = _validate(Params, {stage: dict(section)})
    missing = _unset(getattr(checked, stage), prefix=stage)
    if missing:
        raise ConfigError(f"{missing[0]}: missing, every key of a section must be given (params.yaml is complete).")
    return getattr(checked, stage)  # type: ignore[no-any-return]


def read_params(path: Path, *, recipes: Sequence[Path] = ()) -> Params:
    """Read and check a whole params file.

    Args:
        path: Complete params file.
        recipes: Files with the keys that differ, put over it in this order (`mobileclip.config.recipes`).

    Raises:
        ConfigError: The file is absent, is no mapping, or a key is unknown, missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"params: no file '{path}', want a YAML file with one section per stage.")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"params: '{path}' is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"params: '{path}' holds {type(loaded).__name__}, want a mapping with one section per stage.")
    params = _validate(Params, loaded)
    missing = _unset(params)
    if missing:
        raise ConfigError(f"{missing[0]}: missing in '{path}', want every key of every section.")
    values = params.model_dump(mode="json")
    for recipe in recipes:
        values = apply(values, recipe, schema=Params)
    return _validate(Params, values) if recipes else params


def _validate(model: type[Params], values: Mapping[str, Any]) -> Params:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "params"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key."
    want = error["msg"].removeprefix("Value error, ")
    got = error["input"]
    shown = f"got {got!r}, " if isinstance(got, str | int | float | bool | type(None)) else ""
    return f"{key}: {shown}{want[0].lower()}{want[1:]}."


def _unset(section: BaseModel, prefix: str = "") -> list[str]:
    """Dotted names of the keys that were left to their defaults."""
    found = []
    for key in type(section).model_fields:
        dotted = f"{prefix}.{key}" if prefix else key
        value = getattr(section, key)
        if key not in section.model_fields_set:
            found.append(dotted)
        elif isinstance(value, BaseModel):
            found += _unset(value, dotted)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    found += _unset(item, f"{dotted}.{index}")
    return found
