"""The contact sheet: one self-contained HTML page of thumbnails, without scripts, requests or paths of this machine."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from mobileclip.errors import DataError
from mobileclip.formats.image_input import open_image
from mobileclip.reports.html_elements import Markup, element, join

THUMB = 320  # pixels, longer side
_QUALITY = 82
_MAX_BROKEN = 50  # named on the page


@dataclass(frozen=True)
class Shown:
    """One image of a section.

    Attributes:
        name: Relative to the folder.
        value: What is said under it.
    """

    name: str
    value: str


def render(
    folder: Path,
    sections: Mapping[str, Sequence[Shown]],
    *,
    title: str,
    facts: Mapping[str, str],
    broken: Mapping[str, str],
    kind: str,
) -> str:
    """The page.

    Args:
        folder: Where the images lie.
        sections: Images by heading, in order; an empty heading is not shown.
        title: The query, or what was asked.
        facts: Rows of the header.
        broken: Files that could not be read, with the reason.
        kind: What the page is, above its title.
    """
    listed = [element("div", element("dt", key), element("dd", value)) for key, value in facts.items()]
    parts = [_section(folder, heading, shown) for heading, shown in sections.items()]
    head = element(
        "header",
        element("p", kind, class_="overline"),
        element("h1", _readable(title)),
        element("dl", listed, class_="facts"),
    )
    body = element("main", head, parts, _broken(broken) if broken else None, class_="sheet")
    resources = files("mobileclip.reports")
    style = "\n".join((resources / name).read_text(encoding="utf-8").strip() for name in ("report.css", "sheet.css"))
    page = Template((resources / "report.html").read_text(encoding="utf-8"))
    return page.substitute(title=join(_readable(title)), style=style, body=body)


def _section(folder: Path, heading: str, shown: Sequence[Shown]) -> Markup:
    figures = [_figure(folder, one, number) for number, one in enumerate(shown, 1)]
    content = element("div", figures, class_="gallery")
    return element("section", element("h2", _readable(heading)) if heading else None, content)


def _figure(folder: Path, one: Shown, number: int) -> Markup:
    name = _readable(one.name)
    image = thumbnail(folder / one.name)
    shown = element("img", src=image, alt=name, loading="lazy") if image else element("span", "gone", class_="gone")
    place, _, last = name.rpartition("/")
    caption = element(
        "figcaption",
        element("b", f"{number}"),
        element("span", last, title=name),
        element("i", one.value),
        element("small", place, title=name) if place else None,
    )
    return element("figure", element("div", shown, class_="frame"), caption)


def thumbnail(path: Path) -> str:
    """An image as a JPEG of at most `THUMB` pixels in a data address; empty where it can no longer be read."""
    try:
        small = open_image(path)
    except (DataError, OSError):
        return ""
    small.thumbnail((THUMB, THUMB))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _broken(broken: Mapping[str, str]) -> Markup:
    rows = [element("li", element("code", _readable(name)), " ", reason) for name, reason in list(broken.items())]
    more = len(rows) - _MAX_BROKEN
    return element(
        "details",
        element("summary", f"{len(rows)} {'file' if len(rows) == 1 else 'files'} could not be read"),
        element("ul", rows[:_MAX_BROKEN], element("li", f"and {more} more") if more > 0 else None),
    )


def _readable(text: str) -> str:
    """File names that are no Unicode, with what cannot be shown replaced."""
    return text.encode("utf-8", "replace").decode()
