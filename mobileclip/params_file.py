"""Write a params file: every key of every section with its meaning as a comment, in the order of the chain."""

import json
from typing import Any

from pydantic import BaseModel

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
    if isinstance(value, float) and value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.12e}".split("e")
        # YAML 1.1 reads 1e-6 as a string: it wants the dot and the sign.
        return f"{float(mantissa)}e{int(exponent):+03d}"
    return json.dumps(value, ensure_ascii=False)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]
