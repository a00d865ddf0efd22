"""Write a params file: every key of every section with its meaning as a comment, in the order of the chain."""

import json
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mobileclip.config import Params


def render(params: Params, *, head: str = "") -> str:
    """A complete, canonical params file.

    Args:
        params: The values.
        head: Comment lines at the top.

    Returns:
        YAML that `mobileclip.config.read_params` reads back to the same values.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for name in type(params).model_fields:
        section = getattr(params, name)
        lines += ["", f"# {_first_line(type(section))}", f"{name}:"]
        lines += _fields(section, indent=2)
    return "\n".join(lines).lstrip("\n") + "\n"


def describe(section: BaseModel, *, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows of (dotted key, type, value, meaning) for every key of a section; of a list of sections its items' keys."""
    rows = []
    for key, info in type(section).model_fields.items():
        value, dotted = getattr(section, key), f"{prefix}{key}"
        items = [item for item in value if isinstance(item, BaseModel)] if isinstance(value, list) else []
        nested = isinstance(value, BaseModel) or bool(items)
        meaning = " ".join((info.description or "").split())
        rows.append((dotted, "" if nested else _type(info), "" if nested else _scalar(value), meaning))
        if isinstance(value, BaseModel):
            rows += describe(value, prefix=f"{dotted}.")
        for index, item in enumerate(items):
            rows += describe(item, prefix=f"{dotted}.{index}.")
    return rows


def _type(info: FieldInfo) -> str:
    """A field's type with its bounds, as one reads it."""
    name = info.annotation.__name__ if isinstance(info.annotation, type) else str(info.annotation)
    if "Annotated" in name:
        name = "list" if name.startswith("list") else "text"
    name = name.replace("typing.", "").replace("Literal", "one of ")
    bounds = [f"{sign} {getattr(m, word)}" for m in info.metadata for word, sign in _BOUNDS.items() if hasattr(m, word)]
    return " ".join([name, *bounds])


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _fields(section: BaseModel, *, indent: int, comments: bool = True) -> list[str]:
    lines: list[str] = []
    pad = " " * indent
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        comment = f"  # {' '.join((info.description or '').split())}" if comments and info.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{pad}{key}:{comment}", *_fields(value, indent=indent + 2, comments=comments)]
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            lines.append(f"{pad}{key}:{comment}")
            for index, item in enumerate(value):
                rows = _fields(item, indent=indent + 4, comments=comments and index == 0)
                lines += [f"{pad}  - {rows[0].lstrip()}", *rows[1:]]
        else:
            lines.append(f"{pad}{key}: {_scalar(value)}{comment}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, float) and value != 0 and not 1e-3 <= abs(value) < 1e16:
        # YAML 1.1 reads 1e-6 as a string: it wants the dot and the sign.
        mantissa, exponent = f"{Decimal(repr(value)):e}".split("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+03d}"
    return json.dumps(value, ensure_ascii=False)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]
