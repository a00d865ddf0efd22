"""The report: one self-contained HTML page without scripts or requests, the same bytes for the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

from mobileclip.reports import classes as report_classes
from mobileclip.reports import data as report_data
from mobileclip.reports import results as report_results
from mobileclip.reports import samples as report_samples
from mobileclip.reports.examples import Captions, Query, Sheet
from mobileclip.reports.html_elements import Markup, element, join
from mobileclip.reports.results import headline_sentence, verdict_title
from mobileclip.reports.text import NAMES

# Where a later stage adds what it knows: promote puts its decision before the first section.
LINKS_MARK, SECTIONS_MARK = "<!--links-->", "<!--sections-->"
_KIND = "Evaluation report"


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Attributes:
        results: `results.json`.
        models: Facts of each model by name: `architecture`, `parameters`, `sha256`, `license`, `card`.
        dataset: `digest`, `shards`, `columns` and `sources` of the manifest (`report_data.describe`).
        config: The resolved `evaluate` section.
        version: Version of this package.
        history: Points of the learning curves, as `history.jsonl` has them.
        text_queries: Text-to-image examples.
        picture_queries: Image-to-text examples.
        sheets: Replayed views.
        captions: Captions side by side.
    """

    results: dict[str, Any]
    models: dict[str, dict[str, Any]]
    dataset: dict[str, Any]
    config: dict[str, Any]
    version: str
    history: list[dict[str, Any]] = field(default_factory=list)
    text_queries: list[Query] = field(default_factory=list)
    picture_queries: list[Query] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    captions: list[Captions] = field(default_factory=list)


def render(report: Report) -> str:
    """The page."""
    sections = [section for section in _sections(report) if section[2]]
    body = element(
        "main",
        _header(report, [(anchor, title) for anchor, title, _ in sections]),
        Markup(SECTIONS_MARK),
        [element("section", element("h2", title), content, id=anchor) for anchor, title, content in sections],
        element(
            "footer", f"Written by MobileCLIP Pipelines {report.version}. The page needs no network and no script."
        ),
        class_="sheet",
    )
    template = Template(_resource("report.html"))
    title = join(f"Evaluation report: {verdict_title(report.results)}")
    return template.substitute(title=title, style=_resource("report.css").strip(), body=body)


def extend(page: str, sections: Sequence[tuple[str, str, Markup]], *, kind: str) -> str:
    """Put further sections before the first one of a rendered page.

    Args:
        page: From `render`.
        sections: Anchor, title and content of each, in order; those without content are left out.
        kind: What the page is then, in place of "Evaluation report" above its title.
    """
    page = page.replace(element("p", _KIND, class_="overline"), element("p", kind, class_="overline"), 1)
    shown = [section for section in sections if section[2]]
    links = join([element("a", title, href=f"#{anchor}") for anchor, title, _ in shown])
    body = join([element("section", element("h2", title), content, id=anchor) for anchor, title, content in shown])
    return page.replace(LINKS_MARK, links, 1).replace(SECTIONS_MARK, body, 1)


def _sections(report: Report) -> list[tuple[str, str, Markup]]:
    results = report.results
    return [
        ("results", "Results", report_results.results_section(results)),
        ("curves", "Learning curves", report_results.curves_section(report.history)),
        (
            "retrieval",
            "Retrieval examples",
            report_samples.retrieval_section(report.text_queries, report.picture_queries),
        ),
        ("classes", "Classes", report_classes.classes_section(results)),
        ("views", "Stored views", report_samples.views_section(report.sheets)),
        ("captions", "Captions", report_samples.captions_section(report.captions)),
        ("lineage", "Lineage and licenses", report_data.lineage_section(report.models, report.dataset)),
        ("method", "How the numbers are made", report_data.method_section(results, report.config)),
    ]


def _header(report: Report, links: list[tuple[str, str]]) -> Markup:
    results = report.results
    facts = {
        "Evaluation split": results["split"],
        "Pictures": f"{results['samples']:,}",
        "Distinct captions": f"{results['texts']:,}",
        **{NAMES[name]: facts["architecture"] for name, facts in report.models.items()},
        "Intervals": f"{100 * results['confidence']:g}%, {results['resamples']:,} resamples",
    }
    return element(
        "header",
        element("p", _KIND, class_="overline"),
        element("h1", verdict_title(results)),
        element("p", headline_sentence(results), class_="lead"),
        element("dl", [element("div", element("dt", k), element("dd", v)) for k, v in facts.items()], class_="facts"),
        element(
            "nav",
            Markup(LINKS_MARK),
            [element("a", title, href=f"#{anchor}") for anchor, title in links],
            aria_label="Sections",
        ),
    )


def _resource(name: str) -> str:
    return files("mobileclip.reports").joinpath(name).read_text(encoding="utf-8")
