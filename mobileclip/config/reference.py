"""`python -m mobileclip.config.reference > docs/params.md`: every key with type, default and meaning."""

import sys
from collections.abc import Iterator

from pydantic import BaseModel

from mobileclip.config.params import Params
from mobileclip.config.params_file import first_line, scalar, type_of
from mobileclip.config.reading import section_of

_HEAD = """\
# Params

Every key of a params file with its type, default and meaning. Written by `python -m mobileclip.config.reference` from
the sections of `mobileclip/config`; a test compares.

A params file holds only the keys that differ from these defaults, through every door: `mobileclip run`, single stages,
DVC and Kubeflow. An unknown key is refused, with the key that was probably meant. Sections are merged key by key; a
list replaces the default list, and its items are completed from the tables below.

```
mobileclip params my.yaml                 # the complete file, with every meaning; on stderr what was filled and renamed
mobileclip params my.yaml --short         # only what differs from the defaults
mobileclip params my.yaml --out my.yaml   # rewrite an older file: renamed keys get their new names
```

What a run used, whole, is in `config.json` beside the outputs of each stage.
"""


def reference() -> str:
    """The page as Markdown: one table per stage."""
    parts = [_HEAD]
    for stage, info in Params.model_fields.items():
        kind = section_of(Params, stage)
        if kind is None:
            continue
        rows = "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in _rows(kind, info.default, ""))
        parts.append(
            f"## {stage}\n\n{first_line(kind)}\n\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}"
        )
    return "\n".join(parts)


def _rows(kind: type[BaseModel], base: BaseModel, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for key, info in kind.model_fields.items():
        dotted, inner, default = f"{prefix}{key}", section_of(kind, key), getattr(base, key)
        meaning = " ".join((info.description or "").split())
        if inner is None:
            yield f"`{dotted}`", type_of(info), f"`{scalar(default)}`", meaning
        elif isinstance(default, list):
            shown = ", ".join(str(next(iter(item.model_dump().values()))) for item in default)
            yield f"`{dotted}`", "list of sections", f"`[{shown}]`", meaning
            yield from _rows(inner, inner(), f"{dotted}[].")
        else:
            yield f"`{dotted}`", "section", "", meaning
            yield from _rows(inner, default, f"{dotted}.")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
