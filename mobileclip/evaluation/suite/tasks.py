"""The registry of evaluation tasks: which exist, where their data lies, and which metric counts.

The built-in registry is the 38-task suite of DataComp (with SugarCrepe beside it); a file of one's own, in the same
form, adds folders of pictures and prepared datasets.
"""

from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from mobileclip.config.base import Section, Split
from mobileclip.errors import ConfigError

CLASSES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
_HUB = "https://huggingface.co/datasets/djghosh"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@:/-]*$")]


class Group(Section):
    """Groups of samples that are scored apart."""

    name: Name
    """Name in the metrics: `acc_NAME:3`."""
    column: int = Field(ge=0)
    """Column of the sample's `npy` that holds the group's number."""
    worst: Name
    """Metric of the worst group."""
    top: Literal[1, 5] = 1
    """Accuracy at how many answers."""


class Task(Section):
    """One evaluation task."""

    key: Name
    """Name in the field's result files: `vtab/caltech101`."""
    name: str
    """Name for people."""
    kind: Literal["classification", "retrieval", "association", "choice", "faces"] = "classification"
    """What is asked of the model."""
    layout: Literal["webdataset", "imagefolder", "prepared", "choice"] = "webdataset"
    """How the data lies in its folder."""
    folder: str = ""
    """Folder below the data root; empty = `wds_KEY_test`."""
    file: str = ""
    """File of a `choice` task in its folder."""
    field: str = "group"
    """Metadata field with the class name (layout `prepared`)."""
    split: Split = "test"
    """Split (layout `prepared`; the webdataset layout always has `test`)."""
    classes: int = Field(default=0, ge=0)
    """Number of classes the data must have; 0 = any."""
    samples: int = Field(default=0, ge=0)
    """Number of samples of the whole task; fewer make its score incomplete; 0 = any."""
    templates: list[str] = Field(default_factory=list)
    """Prompts, `{c}` or `{}` takes the class; empty = the folder's own file."""
    main_metric: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.@:/-]*)?$")] = "acc1"
    """The metric that counts; empty = none does, and the task stands beside the average."""
    groups: list[Group] = Field(default_factory=list)
    """Groups scored apart."""
    macro: bool = False
    """Add macro-averaged recall and F1 over the classes that occur."""
    average: bool = True
    """Whether the task counts in the suite's average."""
    source: str = ""
    """Where the data comes from."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("key"), str):
            return given
        folder = given.get("folder") or f"wds_{given['key'].replace('/', '-')}_test"
        hub = f"{_HUB}/{folder}" if given.get("layout", "webdataset") == "webdataset" else ""
        return {**given, "folder": folder, "source": given.get("source") or hub}

    @model_validator(mode="after")
    def _check(self) -> "Task":
        if (self.layout == "choice") != (self.kind == "choice"):
            raise ValueError("kind: `choice` goes with layout `choice` alone")
        if self.layout == "choice" and not self.file:
            raise ValueError("file: missing, a task of layout `choice` names its JSON file")
        if self.kind in {"association", "faces"} and self.layout != "webdataset":
            raise ValueError(f"layout: want webdataset for kind {self.kind}")
        if self.average and not self.main_metric:
            raise ValueError("main_metric: empty, a task without one has `average: false`")
        return self


class Registry(Section):
    """All tasks."""

    tasks: list[Task]
    """In the order of the report."""
    bootstrap: PositiveInt = 1000
    """Bootstrap resamples of each task."""

    @model_validator(mode="after")
    def _check(self) -> "Registry":
        twice = [key for key, count in Counter(task.key for task in self.tasks).items() if count > 1]
        if twice:
            raise ValueError(f"tasks: key '{twice[0]}' appears twice")
        return self


def read(path: Path | None = None) -> Registry:
    """The built-in registry, or the one in a file.

    Raises:
        ConfigError: The file is absent or malformed.
    """
    if path is None:
        text = files("mobileclip.evaluation.suite").joinpath("suite.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise ConfigError(f"suite: no registry '{path}', want a YAML file with `tasks`.")
    try:
        loaded: Any = yaml.safe_load(text)
        return Registry.model_validate(loaded)
    except yaml.YAMLError as error:
        raise ConfigError(f"suite: '{path}' is not YAML: {' '.join(str(error).split())}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "registry"
        raise ConfigError(f"suite: '{path}', {place}: {first['msg'].removeprefix('Value error, ')}.") from None
