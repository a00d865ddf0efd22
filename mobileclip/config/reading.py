"""Read params from outside: fill in the defaults, refuse what is unknown or wrong, one sentence per key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mobileclip.config.base import Section
from mobileclip.config.params import STAGES, Params
from mobileclip.config.recipes import layers, merge
from mobileclip.config.renames import renamed_to
from mobileclip.errors import ConfigError


def check_section(stage: str, section: Section | Mapping[str, Any]) -> Section:
    """Validate one stage's section as it comes from outside; keys that it does not name have their defaults.

    Args:
        stage: One of `STAGES`.
        section: The keys that differ from the defaults, or an already validated section.

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
    return getattr(complete({stage: dict(section)}), stage)  # type: ignore[no-any-return]


def read_params(path: Path, *, recipes: Sequence[Path] = ()) -> Params:
    """Read and check a params file; keys that it does not name have their defaults.

    Args:
        path: Params file.
        recipes: Files with further keys, put over it in this order (`mobileclip.config.recipes`).

    Raises:
        ConfigError: A file is absent or no mapping, or a key is unknown or wrong.
    """
    return complete(*layers(path, key="params"), *(layer for recipe in recipes for layer in layers(recipe)))


def complete(*values: Mapping[str, Any]) -> Params:
    """Put mappings of sections over the defaults, one after the other, and validate the result.

    Raises:
        ConfigError: One sentence per wrong key, each with its dotted name.
    """
    merged: dict[str, Any] = Params().model_dump(mode="json")
    for layer in values:
        merged = merge(merged, layer, Params)
    try:
        return Params.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "params"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_hint(error['loc'])}."
    want = error["msg"].removeprefix("Value error, ")
    got = error["input"]
    shown = f"got {got!r}, " if isinstance(got, str | int | float | bool | type(None)) else ""
    return f"{key}: {shown}{want[0].lower()}{want[1:]}."


def _hint(place: Sequence[str | int]) -> str:
    """What was probably meant by an unknown key: its new name, one like it, or the only one so called below."""
    new = renamed_to(".".join(str(part) for part in place))
    if new:
        return f", it is called {new} now (`mobileclip params FILE` upgrades a file)"
    model: type[BaseModel] = Params
    for part in place[:-1]:
        if isinstance(part, str):
            model = section_of(model, part) or model
    near = difflib.get_close_matches(str(place[-1]), list(model.model_fields), n=1)
    if not near:
        near = [dotted for dotted in _below(model) if dotted.split(".")[-1] == place[-1]]
    above = ".".join(str(part) for part in place[:-1])
    return f", did you mean {above}{'.' if above else ''}{near[0]}" if len(near) == 1 else ""


def section_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section, or the section of the items, that a key holds."""
    annotation = model.model_fields[key].annotation if key in model.model_fields else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _below(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key in model.model_fields:
        yield f"{prefix}{key}"
        inner = section_of(model, key)
        if inner is not None:
            yield from _below(inner, f"{prefix}{key}.")
