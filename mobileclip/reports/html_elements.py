"""HTML that escapes by construction: every plain string that enters an element is text, never markup."""

import html
from collections.abc import Iterable
from typing import TypeAlias

_VOID = frozenset({"br", "hr", "img", "link", "meta", "circle", "line", "path", "polyline", "rect"})


class Markup(str):
    """A string that is markup already. Made by `element` and `join` alone."""

    __slots__ = ()


Child: TypeAlias = str | int | float | Iterable["Child"] | None


def element(name: str, *children: Child, **attributes: str | int | float | None) -> Markup:
    """One HTML or SVG element.

    Args:
        name: Element name.
        children: Text (escaped), markup (kept), nested iterables of both; `None` is left out.
        attributes: A trailing underscore is dropped and others become dashes (`class_`, `data_label`, `stroke_width`);
            values are escaped, `None` is left out.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{pairs}/>" if name not in {"br", "hr", "img", "link", "meta"} else f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other, plain strings escaped."""
    return Markup("".join(_render(child) for child in children))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, str | int | float):
        return html.escape(str(child), quote=True)
    return "".join(_render(item) for item in child)
