"""Students of one reinforced dataset side by side: score against size, and which of them no other one beats in both."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.reports.charts import nice_ticks
from mobileclip.reports.html_elements import Markup, element, join

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 720, 380, 64, 48, 24
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;width:100%} th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #d8dee4}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left} tr.best{font-weight:600}
svg{width:100%;height:auto} .axis{stroke:#8c959f} .front{fill:none;stroke:#0969da;stroke-width:2}
.dot{fill:#8c959f} .best .dot{fill:#0969da} .bar{stroke:#8c959f;stroke-width:1.5} text{fill:currentColor;font-size:12px}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117} th,td{border-color:#30363d}}
"""


@dataclass(frozen=True)
class Candidate:
    """One student.

    Attributes:
        name: Its name in the sweep.
        model: Architecture.
        metric: Headline metric of its evaluation, such as `retrieval/mean/r1`; more is better.
        score: Value on the evaluated split.
        low: Lower end of its interval.
        high: Upper end.
        size: Smallest exported image program and text program together [bytes].
    """

    name: str
    model: str
    metric: str
    score: float
    low: float
    high: float
    size: int


def read(name: str, evaluation: str, programs: str) -> Candidate:
    """A student from its evaluation and its export.

    Args:
        name: Its name in the sweep.
        evaluation: Output of evaluate.
        programs: Output of export.

    Raises:
        DataError: A file is missing, or lacks a number.
    """
    results = json.loads(storage.read_bytes(storage.join(evaluation, "results.json")))
    contract = json.loads(storage.read_bytes(storage.join(programs, "contract.json")))
    try:
        metric = results["headline"]
        (whole,) = (scope for scope in results["scopes"] if not scope["name"])
        student = whole["metrics"][metric]["student"]
        sizes = {t: min(p["bytes"] for p in contract["programs"] if p["tower"] == t) for t in ("image", "text")}
        return Candidate(
            name, contract["model"], metric, student["value"], student["low"], student["high"], sum(sizes.values())
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"pareto: the results of '{name}' lack {error}, run evaluate and export again.") from None


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one beats (at least as good and at least as small, and better in one of both); by size."""
    kept = [c for c in candidates if not any(_beats(other, c) for other in candidates)]
    return sorted(kept, key=lambda c: (c.size, -c.score, c.name))


def check(candidates: Sequence[Candidate]) -> None:
    """Check that scores may be compared.

    Raises:
        DataError: There are none, or they were scored by different metrics.
    """
    metrics = sorted({candidate.metric for candidate in candidates})
    if len(metrics) != 1:
        raise DataError(f"pareto: got scores of {len(metrics)} metrics ({', '.join(metrics)}), want students of one.")


def table(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """All candidates and the names of those on the front, as JSON."""
    best = [candidate.name for candidate in front(candidates)]
    return {"students": [asdict(c) for c in sorted(candidates, key=lambda c: c.name)], "front": best}


def numbers(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Metrics by name of the student."""
    found: dict[str, float] = {}
    for candidate in sorted(candidates, key=lambda c: c.name):
        found |= {f"{candidate.name}/score": candidate.score, f"{candidate.name}/bytes": float(candidate.size)}
    return found


def render(candidates: Sequence[Candidate]) -> str:
    """A self-contained page: the chart and the table."""
    best = front(candidates)
    (metric,) = {candidate.metric for candidate in candidates}
    names = {candidate.name for candidate in best}
    head = join(element("meta", charset="utf-8"), element("title", "Students"), Markup(f"<style>{_STYLE}</style>"))
    body = join(
        element("h1", "Students of one reinforced dataset"),
        element(
            "p",
            f"{len(names)} of {len(candidates)} students are beaten by no other one in both {metric} and size: ",
            ", ".join(candidate.name for candidate in best),
            ". Bars are the intervals of the evaluation.",
        ),
        _chart(candidates, best),
        _table(candidates, names),
    )
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def _beats(one: Candidate, other: Candidate) -> bool:
    better = one.score > other.score or one.size < other.size
    return one.score >= other.score and one.size <= other.size and better


def _table(candidates: Sequence[Candidate], best: set[str]) -> Markup:
    head = element(
        "tr", (element("th", t) for t in ("student", "architecture", "score [%]", "interval [%]", "size [MB]"))
    )
    rows = []
    for c in sorted(candidates, key=lambda c: (-c.score, c.size, c.name)):
        span = f"{100 * c.low:.1f} to {100 * c.high:.1f}"
        cells = (c.name, c.model, f"{100 * c.score:.2f}", span, f"{c.size / 1e6:.1f}")
        rows.append(element("tr", (element("td", cell) for cell in cells), class_="best" if c.name in best else None))
    return element("table", head, rows)


def _chart(candidates: Sequence[Candidate], best: Sequence[Candidate]) -> Markup:
    across = nice_ticks(0.0, max(c.size for c in candidates) / 1e6, count=6)
    up = nice_ticks(100 * min(c.low for c in candidates), 100 * max(c.high for c in candidates), count=5)

    def place(size: float, score: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _MARGIN) * size / across[-1]
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _MARGIN) * (score - up[0]) / (up[-1] - up[0])
        return round(x, 1), round(y, 1)

    names = {candidate.name for candidate in best}
    line = " ".join("{},{}".format(*place(c.size / 1e6, 100 * c.score)) for c in best)
    parts = [_axes(across, up, place), element("polyline", points=line, class_="front")]
    for c in candidates:
        (x, y), (_, low), (_, high) = (place(c.size / 1e6, 100 * v) for v in (c.score, c.low, c.high))
        bar = element("line", x1=x, x2=x, y1=low, y2=high, class_="bar")
        dot = element("circle", cx=x, cy=y, r=5, class_="dot")
        label = element("text", c.name, x=x + 9, y=y - 7)
        parts.append(element("g", bar, dot, label, class_="best" if c.name in names else None))
    return element("svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label="score against size")


def _axes(across: Sequence[float], up: Sequence[float], place: Any) -> Markup:
    (left, bottom), (right, top) = place(across[0], up[0]), place(across[-1], up[-1])
    lines = [
        element("line", x1=left, y1=bottom, x2=right, y2=bottom, class_="axis"),
        element("line", x1=left, y1=bottom, x2=left, y2=top, class_="axis"),
    ]
    marks = [element("text", f"{t:g}", x=place(t, up[0])[0], y=bottom + 18, text_anchor="middle") for t in across]
    marks += [element("text", f"{t:g}", x=left - 8, y=place(across[0], t)[1] + 4, text_anchor="end") for t in up]
    names = [
        element(
            "text", "size of the exported programs [MB]", x=(left + right) / 2, y=_HEIGHT - 8, text_anchor="middle"
        ),
        element("text", "score [%]", x=8, y=14),
    ]
    return join(lines, marks, names)


def write(root: str, candidates: Sequence[Candidate]) -> Mapping[str, float]:
    """Write `pareto.json` and `pareto.html` into a folder.

    Args:
        root: Folder or `s3://` prefix.
        candidates: All students.

    Returns:
        Their numbers.

    Raises:
        DataError: They cannot be compared.
    """
    check(candidates)
    content = json.dumps(table(candidates), indent=2, sort_keys=True) + "\n"
    storage.write_bytes(storage.join(root, "pareto.json"), content.encode())
    storage.write_bytes(storage.join(root, "pareto.html"), render(candidates).encode())
    return numbers(candidates)
