"""Who made what a model was made from: collected stage by stage, each thing once, and told as its license wants it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from mobileclip.errors import IntegrityError
from mobileclip.lineage import licenses
from mobileclip.manifest import Attribution, Manifest

CARD_KEY = "attributions"
_HEADINGS = {
    "data": "Pictures and captions",
    "captioner": "Models that wrote captions",
    "teacher": "Models that were distilled",
    "weights": "Pretrained weights that it, or a model above, started from",
}


def of_data(content: Manifest) -> list[Attribution]:
    """The sources of a dataset's pictures and captions."""
    return [
        Attribution(kind="data", name=s.name, license=s.license, attribution=s.attribution, url=s.url)
        for s in content.sources
    ]


def of_column(content: Manifest, name: str, kind: Literal["captioner", "teacher"]) -> list[Attribution]:
    """The model behind a column, and what that was made from; of a column without them its name and license.

    Raises:
        DataError: There is no such column.
    """
    column = content.column(name)
    own = Attribution(kind=kind, name=name.removesuffix(".views"), license=column.license)
    return column.attributions or [own]


def merged(*parts: Iterable[Attribution]) -> list[Attribution]:
    """All of them in this order, each once."""
    return list(dict.fromkeys(found for part in parts for found in part))


def license_of(found: Iterable[Attribution]) -> str:
    """What is made from all of them inherits every license."""
    return licenses.together(one.license for one in found) or "unknown"


def to_card(found: Iterable[Attribution]) -> dict[str, Any]:
    """The entry of a model's card."""
    return {CARD_KEY: [one.model_dump(mode="json") for one in found]}


def of_card(card: Mapping[str, Any]) -> list[Attribution]:
    """What a model's card records; empty where it was written before there were any.

    Raises:
        IntegrityError: The entry is damaged.
    """
    try:
        return [Attribution.model_validate(one) for one in card.get(CARD_KEY, [])]
    except (ValidationError, TypeError):
        raise IntegrityError(f"model.json: '{CARD_KEY}' is no list of kind, name, license, attribution, url.") from None


def markdown(found: Sequence[Attribution]) -> str:
    """Everything by kind with license, attribution and address, then where each license can be read."""
    parts = []
    for kind, heading in _HEADINGS.items():
        lines = [_line(one) for one in found if one.kind == kind]
        parts += [f"### {heading}", "\n".join(lines)] if lines else []
    names = sorted({name for one in found for name in licenses.names(one.license)}, key=str.lower)
    return "\n\n".join([*parts, "### Licenses", "\n".join(map(_license_line, names))]) if names else ""


def _line(one: Attribution) -> str:
    words = [f"- **{_plain(one.name)}**, license {_code(one.license)}.", _plain(one.attribution)]
    return " ".join(word for word in [*words, f"<{one.url}>" if one.url else ""] if word)


def _license_line(name: str) -> str:
    text = licenses.text(name)
    told = (
        f"<{text.url}>" if text else f"its text is not known here; its terms count as {licenses.classify(name).label}"
    )
    return " ".join(word for word in (f"- {_code(name)}:", told, text.notice if text else "") if word)


def _plain(text: str) -> str:
    """On one line, without a meaning in Markdown."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
