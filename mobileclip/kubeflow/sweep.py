"""Several students of one reinforced dataset: variants of the section `distill`, by name."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mobileclip import storage
from mobileclip.config import check_section
from mobileclip.errors import ConfigError

FOLDER = "sweep"
"""Below the root of the run that made the dataset; student X writes `ROOT/sweep/X/{distill,evaluate,export}`."""

_MAX_STUDENTS = 100


def variant(config: Mapping[str, Any], variants: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The section of one student: mappings are merged, all other values replaced.

    Args:
        config: The whole section `distill`.
        variants: What differs, by name of the student.
        name: The student.

    Raises:
        ConfigError: There is no such student, or its section is wrong.
    """
    if name not in variants:
        raise ConfigError(f"students: no '{name}', want one of {', '.join(variants)}.")
    merged = _merge(config, variants[name] or {}, f"students.{name}")
    return dict(check_section("distill", merged).model_dump(mode="json"))


def read(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read a file of students, `NAME: {KEY: VALUE, ...}`, and check the section of each.

    Args:
        path: YAML file.
        config: The whole section `distill`.

    Raises:
        ConfigError: The file is missing or empty, or a name or key is wrong.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"students: no YAML file '{path}' ({type(error).__name__}).") from None
    if not isinstance(found, dict) or not 1 <= len(found) <= _MAX_STUDENTS:
        raise ConfigError(f"students: '{path}' wants 1 to {_MAX_STUDENTS} students, each NAME: {{KEY: VALUE, ...}}.")
    for name in found:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", str(name)):
            raise ConfigError(f"students: got '{name}', want a name of small letters, digits and dashes.")
        variant(config, found, name)
    return {str(name): value or {} for name, value in found.items()}


def compare(root: str, evaluations: Sequence[str], programs: Sequence[str]) -> dict[str, float]:
    """Write the Pareto report of a sweep.

    Args:
        root: Folder or `s3://` prefix of the run; the report is `ROOT/sweep/pareto.html`.
        evaluations: Outputs of evaluate, `ROOT/sweep/NAME/evaluate`.
        programs: Outputs of export of the same students.

    Returns:
        Score and size of each.

    Raises:
        DataError: A student was not scored or not exported, or by another metric than the rest.
    """
    from mobileclip.reports import pareto

    scored, exported = ({_name(uri): uri for uri in uris} for uris in (evaluations, programs))
    if scored.keys() != exported.keys():
        raise ConfigError(f"students: scored {sorted(scored)}, exported {sorted(exported)}, want the same.")
    found = [pareto.read(name, uri, exported[name]) for name, uri in scored.items()]
    return dict(pareto.write(storage.join(root, FOLDER), found))


def _name(uri: str) -> str:
    return uri.rstrip("/").split("/")[-2]


def _merge(base: Mapping[str, Any], change: Any, place: str) -> dict[str, Any]:
    if not isinstance(change, Mapping):
        raise ConfigError(f"{place}: got {change!r}, want a mapping.")
    merged = dict(base)
    for key, value in change.items():
        if key not in base:
            raise ConfigError(f"{place}.{key}: unknown key.")
        nested = isinstance(base[key], Mapping)
        merged[key] = _merge(base[key], value, f"{place}.{key}") if nested else value
    return merged
