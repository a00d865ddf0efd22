"""Layers of params: a params file over the defaults, and recipes over a params file.

Both kinds of file are a YAML mapping with sections, of which they name only what differs. A block `recipe` may say
where the numbers come from, and which files lie below this one:

    recipe:
      title: "..."
      source: "..."
      extends: ["another.yaml"]

Sections are merged key by key; everything else (lists, scales by teacher) is replaced, and the items of a list
(teachers) are completed from the schema.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mobileclip.errors import ConfigError

_ABOUT = {"title", "source", "extends"}
_DEPTH = 8


def layers(path: Path, *, key: str = "recipe") -> list[dict[str, Any]]:
    """The sections of a file, after those of the files it extends.

    Args:
        path: Params file or recipe.
        key: What an error calls it.

    Raises:
        ConfigError: A file is absent, no mapping, or extends itself.
    """
    return _layers(path, key, _DEPTH)


def about(path: Path) -> dict[str, Any]:
    """The block `recipe` of a file: title, source and what it extends, where they are given.

    Raises:
        ConfigError: The file is absent or no mapping; the block has an unknown key.
    """
    return _about(path, read(path), "recipe")


def merge(base: Mapping[str, Any], change: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """`base` with the keys of `change` put over it, section by section.

    Args:
        base: Values by key.
        change: Some of them, other. A section that is null has no key that differs.
        section: Says which keys are sections.
    """
    merged = dict(base)
    for key, value in change.items():
        info = section.model_fields.get(key)
        inner = info.annotation if info is not None and isinstance(info.annotation, type) else None
        if inner is not None and issubclass(inner, BaseModel) and isinstance(value, Mapping | None):
            merged[key] = merge(merged.get(key, {}), value or {}, inner)
        else:
            merged[key] = value
    return merged


def read(path: Path, *, key: str = "recipe") -> dict[str, Any]:
    """A file as the mapping it holds.

    Raises:
        ConfigError: The file is absent, not YAML, or no mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{key}: no file '{path}', want a YAML file with sections of stages.") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: '{path}' is not YAML: {' '.join(str(error).split())}.") from None
    if loaded is None:
        return {}  # a file whose every line is a comment: all defaults
    if not isinstance(loaded, dict):
        raise ConfigError(f"{key}: '{path}' holds {type(loaded).__name__}, want a mapping with sections of stages.")
    return loaded


def _about(path: Path, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get("recipe", {})
    if not isinstance(found, dict):
        raise ConfigError(f"{key}: '{path}' has a block `recipe` that is no mapping, want title, source, extends.")
    if set(found) - _ABOUT:
        raise ConfigError(f"recipe.{min(set(found) - _ABOUT)}: unknown key in '{path}'.")
    return found


def _layers(path: Path, key: str, depth: int) -> list[dict[str, Any]]:
    if depth == 0:
        raise ConfigError(f"{key}: '{path}' extends itself, or too many others.")
    values = read(path, key=key)
    names = _about(path, values, key).get("extends", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"recipe.extends: got {names!r} in '{path}', want a list of files.")
    below = [layer for name in names for layer in _layers(path.parent / name, key, depth - 1)]
    return [*below, {name: value for name, value in values.items() if name != "recipe"}]
