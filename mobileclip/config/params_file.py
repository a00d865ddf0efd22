"""Write a params file with the meaning of each key as a comment, in the order of the chain: whole, or what differs."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mobileclip.config import Params


def render(params: Params, *, head: str = "", short: bool = False) -> str:
    """A canonical params file.

    Args:
        params: The values.
        head: Comment lines at the top.
        short: Only the keys whose values differ from the defaults.

    Returns:
        YAML that `mobileclip.config.read_params` reads back to the same values.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for name in type(params).model_fields:
        section = getattr(params, name)
        rows = _fields(section, indent=2, base=type(params).model_fields[name].default if short else None)
        if rows:
            lines += ["", f"# {first_line(type(section))}", f"{name}:", *rows]
    return "\n".join(lines).lstrip("\n") + "\n"


def filled(values: Mapping[str, Any], params: Params) -> list[str]:
    """Dotted keys that a params file does not name, of a section that it does not name the section alone."""
    return _filled(values, params, "")


def describe(section: BaseModel, *, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows of (dotted key, type, value, meaning) for every key of a section; of a list of sections its items' keys."""
    rows = []
    for key, info in type(section).model_fields.items():
        value, dotted = getattr(section, key), f"{prefix}{key}"
        items = [item for item in value if isinstance(item, BaseModel)] if isinstance(value, list) else []
        nested = isinstance(value, BaseModel) or bool(items)
        meaning = " ".join((info.description or "").split())
        rows.append((dotted, "" if nested else type_of(info), "" if nested else scalar(value), meaning))
        if isinstance(value, BaseModel):
            rows += describe(value, prefix=f"{dotted}.")
        for index, item in enumerate(items):
            rows += describe(item, prefix=f"{dotted}.{index}.")
    return rows


def type_of(info: FieldInfo) -> str:
    """A field's type with its bounds, as one reads it."""
    name = info.annotation.__name__ if isinstance(info.annotation, type) else str(info.annotation)
    if "Annotated" in name:
        name = "list" if name.startswith("list") else "text"
    name = name.replace("typing.", "")
    if get_origin(info.annotation) is Literal:
        name = f"one of {', '.join(str(value) for value in get_args(info.annotation))}"
    bounds = [f"{sign} {getattr(m, word)}" for m in info.metadata for word, sign in _BOUNDS.items() if hasattr(m, word)]
    return " ".join([name, *bounds])


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _fields(section: BaseModel, *, indent: int, base: BaseModel | None, comments: bool = True) -> list[str]:
    """Lines of a section; with `base` only of the keys that differ from it."""
    lines: list[str] = []
    pad = " " * indent
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        below = getattr(base, key, None)
        if base is not None and value == below:
            continue
        comment = f"  # {' '.join((info.description or '').split())}" if comments and info.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{pad}{key}:{comment}", *_fields(value, indent=indent + 2, base=below, comments=comments)]
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            lines.append(f"{pad}{key}:{comment}")
            for index, item in enumerate(value):
                shown = comments and index == 0
                rows = _fields(item, indent=indent + 4, base=None if base is None else _unnamed(item), comments=shown)
                lines += [f"{pad}  - {rows[0].lstrip()}", *rows[1:]]
        else:
            lines.append(f"{pad}{key}: {scalar(value)}{comment}")
    return lines


def _unnamed(item: BaseModel) -> BaseModel:
    """An item of a list with all its defaults but for the first key, which tells items apart and is always written."""
    return type(item).model_construct(**{next(iter(type(item).model_fields)): None})


def _filled(values: Mapping[str, Any], section: BaseModel, prefix: str) -> list[str]:
    found: list[str] = []
    for key in type(section).model_fields:
        value, given = getattr(section, key), values.get(key)
        if given is None:
            found.append(f"{prefix}{key}")
        elif isinstance(value, BaseModel):
            found += _filled(given, value, f"{prefix}{key}.")
        elif isinstance(value, list):
            for index, (item, row) in enumerate(zip(value, given, strict=True)):
                found += _filled(row, item, f"{prefix}{key}.{index}.") if isinstance(item, BaseModel) else []
    return found


def scalar(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, float) and value != 0 and not 1e-3 <= abs(value) < 1e16:
        # YAML 1.1 reads 1e-6 as a string: it wants the dot and the sign.
        mantissa, exponent = f"{Decimal(repr(value)):e}".split("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+03d}"
    return json.dumps(value, ensure_ascii=False)


def first_line(model: type[BaseModel]) -> str:
    """What a section is for: the first line of its docstring."""
    return (model.__doc__ or "").strip().splitlines()[0]
