"""The captioner's report: scores on held-out pictures and what it wrote, as one page without scripts or requests."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from mobileclip.reports.html_elements import Markup, element, join

_PHASES = {"start": "before fine-tuning", "pretrain": "after pre-training", "finetune": "after fine-tuning"}
_SCORES = {
    "caption_loss": ("Caption loss", "nats per token, lower is better"),
    "cider": ("CIDEr-D", "0 to 10; papers print it times 100"),
    "bleu4": ("BLEU-4", "0 to 100"),
    "clip_score": ("CLIP score", "mean cosine by the captioner's own towers"),
    "degenerate": ("Degenerate", "share of empty or looping captions"),
    "words/mean": ("Words", "mean length"),
}


def caption_page(scores: Mapping[str, Mapping[str, float]], rows: Sequence[Mapping[str, Any]], *, held_out: int) -> str:
    """One self-contained HTML page; the same content gives the same bytes.

    Args:
        scores: By phase (`pretrain` or `start`, `finetune`) its scores on the validation split.
        rows: `samples.json` with a `picture` (data URI) each.
        held_out: Pictures that were captioned for the scores.
    """
    title = "Captioner"
    body = join(
        element("h1", title),
        element(
            "p",
            f"One greedy caption for each of {held_out:,} held-out pictures, against their own captions. "
            "The pictures below are the first of them, not chosen.",
            class_="note",
        ),
        element("section", element("h2", "Scores"), _table(scores), id="scores"),
        element("section", element("h2", "Captions"), element("div", [_row(row) for row in rows], class_="panel")),
    )
    folder = files("mobileclip.reports")
    page = Template((folder / "report.html").read_text())
    return page.substitute(title=title, style=(folder / "report.css").read_text(), body=element("main", body))


def _table(scores: Mapping[str, Mapping[str, float]]) -> Markup:
    head = element("tr", element("th", "Score"), [element("th", _PHASES.get(name, name)) for name in scores])
    rows = [
        element(
            "tr",
            element("th", title, " ", element("small", note)),
            [element("td", f"{found[key]:.3f}" if key in found else "") for found in scores.values()],
        )
        for key, (title, note) in _SCORES.items()
    ]
    return element("table", element("thead", head), element("tbody", rows))


def _row(row: Mapping[str, Any]) -> Markup:
    lists = [_texts("Alt text", row["alt_text"]), _texts("Its own captions", row["references"])]
    for phase, name in _PHASES.items():
        if phase in row:
            lists.append(_texts(f"Written {name}, greedy", [row[phase]["greedy"]]))
            lists.append(_texts(f"Written {name}, drawn", row[phase]["drawn"]))
    picture = element("div", element("img", src=row["picture"], alt=row["references"][0]), class_="thumb")
    return element("div", picture, element("div", lists, class_="columns"), class_="caption-row")


def _texts(title: str, texts: Sequence[str]) -> Markup:
    return element("div", element("h4", title), element("ul", [element("li", t) for t in texts], class_="texts"))
