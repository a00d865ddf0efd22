"""Recipes: the few keys by which a published or proven setting differs from a complete params file.

A recipe is a YAML mapping like params.yaml, of which it names only what it changes, plus a block `recipe` that says
where the numbers come from:

    recipe:
      title: "..."
      source: "..."
      extends: ["another.yaml"]

Sections are merged key by key, everything else (lists, scales by teacher) is replaced. The params file below a recipe
stays complete, so no key is ever silently a default of the code; only the items of a list that a recipe replaces
(teachers) are completed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mobileclip.errors import ConfigError

_ABOUT = {"title", "source", "extends"}
_DEPTH = 8


def apply(values: Mapping[str, Any], recipe: Path, *, schema: type[BaseModel]) -> dict[str, Any]:
    """The values of a params file with a recipe's, and those it extends, put over them.

    Args:
        values: All sections.
        recipe: File.
        schema: `Params`: says which keys are sections.

    Raises:
        ConfigError: The recipe is absent, no mapping, or extends itself. Unknown keys are found by the validation.
    """
    merged = dict(values)
    for layer in _layers(recipe, _DEPTH):
        merged = _merge(merged, layer, schema)
    return merged


def about(recipe: Path) -> dict[str, Any]:
    """The block `recipe` of a file: title and source.

    Raises:
        ConfigError: As `apply`; a title or source is missing.
    """
    found = _read(recipe).get("recipe")
    if not isinstance(found, dict) or not found.get("title") or not found.get("source"):
        raise ConfigError(f"recipe: '{recipe}' has no title and source, want a block `recipe` with both.")
    if set(found) - _ABOUT:
        raise ConfigError(f"recipe.{min(set(found) - _ABOUT)}: unknown key in '{recipe}'.")
    return found


def _layers(recipe: Path, depth: int) -> list[dict[str, Any]]:
    """Sections of a recipe, after those of the recipes it extends."""
    if depth == 0:
        raise ConfigError(f"recipe: '{recipe}' extends itself, or too many others.")
    extends = about(recipe).get("extends", [])
    below = [layer for name in extends for layer in _layers(recipe.parent / name, depth - 1)]
    return [*below, {key: value for key, value in _read(recipe).items() if key != "recipe"}]


def _read(recipe: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe: no file '{recipe}'.") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe: '{recipe}' is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"recipe: '{recipe}' holds {type(loaded).__name__}, want a mapping with sections.")
    return loaded


def _merge(base: Mapping[str, Any], change: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        info = section.model_fields.get(key)
        inner = info.annotation if info is not None and isinstance(info.annotation, type) else None
        if inner is not None and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            merged[key] = _merge(merged.get(key, {}), value, inner)
        else:
            merged[key] = value
    return merged
