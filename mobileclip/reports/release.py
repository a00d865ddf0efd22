"""The page of a whole run: evaluate's report with the decision, the champion, cost, programs and lineage before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mobileclip.evaluation import paired as comparison
from mobileclip.lineage.licenses import because, binding, classify
from mobileclip.lineage.trace import Trace
from mobileclip.promotion.candidates import Candidate
from mobileclip.promotion.gates import Champion, Evidence, Verdict
from mobileclip.reports import page as report_page
from mobileclip.reports.charts import legend
from mobileclip.reports.data import size_text
from mobileclip.reports.html_elements import Markup, element, join
from mobileclip.reports.published_figures import MODELS
from mobileclip.reports.results import main_metrics
from mobileclip.reports.scatter import Dot, scatter_chart
from mobileclip.reports.text import delta_range_text, delta_text, metric_label, value_text

_SHOWN = 12
_NUMBERS = {"This student", "Champion", "Difference", "Size", "Error", "Budget", "Digests checked", "Memory"}


@dataclass(frozen=True)
class Release:
    """What promote knows beyond the evaluation.

    Attributes:
        name: Name in the registry.
        version: This student's version.
        verdicts: Every gate's.
        evidence: What the gates looked at.
        champion: The champion at the time; none = there was none.
        trace: The student's lineage.
        timings: `timings.json` of export: tower, threads, program.
        candidates: Registered students with a latency, this one among them.
    """

    name: str
    version: int
    verdicts: Sequence[Verdict]
    evidence: Evidence
    champion: Champion | None
    trace: Trace
    timings: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[Candidate] = ()


def render(page: str, release: Release) -> str:
    """The page.

    Args:
        page: Report of evaluate.
        release: What is added.
    """
    sections = [
        ("decision", "Decision", _decision(release)),
        ("champion", "Against the champion", _against(release)),
        ("latency", "Accuracy and latency", _latency(release)),
        ("programs", "Exported programs and their proof", _programs(release)),
        ("chain", "Chain and licenses", _chain(release)),
    ]
    passed = all(verdict.passed for verdict in release.verdicts)
    kind = f"Run report of {release.name}, version {release.version}: {'all gates passed' if passed else 'refused'}"
    return report_page.extend(page, sections, kind=kind)


def _decision(release: Release) -> Markup:
    refused = [verdict for verdict in release.verdicts if not verdict.passed]
    count = len(release.verdicts)
    if refused:
        text = f"Version {release.version} of {release.name} was refused: {len(refused)} of {count} gates are not met."
    else:
        text = f"Version {release.version} of {release.name} passed all {count} gates."
    rows = [
        _row(
            verdict.gate,
            {"Got": verdict.got, "Wanted": verdict.want, "Passed": _mark(verdict.passed), "Reason": verdict.reason},
        )
        for verdict in [*refused, *(v for v in release.verdicts if v.passed)]
    ]
    return join(
        element("p", text), element("div", _table(["Gate", "Got", "Wanted", "Passed", "Reason"], rows), class_="panel")
    )


def _against(release: Release) -> Markup:
    champion, evidence = release.champion, release.evidence
    if champion is None:
        return element("p", "There was no champion to compare with.", class_="note")
    if not comparison.same_samples(evidence.samples, champion.samples):
        return element(
            "p",
            f"Version {champion.version}, the champion, was scored on other samples: no number of it compares.",
            class_="note",
        )
    rows = [_champion_row(metric, release, champion) for metric in _compared(release, champion)]
    note = (
        f"Version {champion.version}, the champion, and this student on the same {len(evidence.samples):,} samples; "
        "differences have paired intervals."
    )
    heads = ["Metric", "This student", "Champion", "Difference", "Verdict"]
    return join(element("p", note, class_="note"), element("div", _table(heads, rows), class_="panel"))


def _compared(release: Release, champion: Champion) -> list[str]:
    wanted = main_metrics(dict(release.evidence.results)) if release.evidence.results else []
    return [m for m in wanted if f"student/{m}" in champion.metrics and f"student/{m}" in release.evidence.metrics]


def _champion_row(metric: str, release: Release, champion: Champion) -> Markup:
    evidence, results = release.evidence, release.evidence.results
    ours, theirs = evidence.metrics[f"student/{metric}"], champion.metrics[f"student/{metric}"]
    found = comparison.paired(
        f"student/{metric}", evidence.samples, champion.samples, confidence=float(results["confidence"]),
        resamples=int(results["resamples"]), seed=int(results["seed"]),
    )  # fmt: skip
    task, measure = metric_label(metric)
    cells: dict[str, Any] = {"This student": value_text(metric, ours), "Champion": value_text(metric, theirs)}
    if found is None:
        cells |= {"Difference": delta_text(metric, ours - theirs), "Verdict": "not paired"}
    else:
        span = delta_range_text(metric, {"low": found.low, "high": found.high})
        cells["Difference"] = join(delta_text(metric, found.delta), element("span", span, class_="range"))
        cells["Verdict"] = element(
            "span", found.verdict, class_=f"verdict {found.verdict.replace('no evidence', 'none')}"
        )
    return _row(f"{measure.split(' (', maxsplit=1)[0]}, {task.split(', ', maxsplit=1)[-1]}", cells)


def _latency(release: Release) -> Markup:
    ours = [
        Dot(
            c.label, c.latency_ms, c.score, c.low, c.high, c.kind,
            f"{c.label}: {100 * c.score:.1f}% at {c.latency_ms:.2f} ms",
        )
        for c in release.candidates
    ]  # fmt: skip
    published = [
        Dot(
            m.name, m.latency_ms, m.top1, m.top1, m.top1, "published2" if m.family == "MobileCLIP2" else "published",
            f"{m.family}-{m.name}: {100 * m.top1:.1f}%, {m.latency_ms:.1f} ms",
        )
        for m in MODELS
    ]  # fmt: skip
    x_label = "latency of both towers, ms"
    left = (
        scatter_chart(ours, title="Candidates here.", note=_measured(release), x_label=x_label)
        if ours
        else element("p", "No latency was measured for this student (export.latency_runs is 0).", class_="note")
    )
    right = scatter_chart(
        published, title="Published models, for context.", x_label=x_label,
        note="ImageNet-1k zero-shot top-1 on an iPhone 12 Pro Max: neither the candidates' task nor their device.",
    )  # fmt: skip
    names = {"student": "This student", "champion": "Champion", "other": "Other versions"}
    families = {"published": "MobileCLIP", "published2": "MobileCLIP2"}
    return join(
        element(
            "div",
            element("div", legend({**names, **families}), class_="dots-legend"),
            element("div", left, right, class_="pair"),
            class_="panel",
        ),
        _cost(release),
    )


def _measured(release: Release) -> str:
    metric = release.evidence.results.get("headline", "")
    task, measure = metric_label(metric) if metric else ("", "score")
    what = f"{measure} ({task[:1].lower()}{task[1:]}) of the student in PyTorch"
    said = f"{what}; its fastest exported programs, each within its error budget, one thread, warm, batch 1, median."
    elsewhere = any(candidate.device for candidate in release.candidates)
    return said + (" Dots that name a device were measured there, on all its backends." if elsewhere else "")


def _cost(release: Release) -> Markup:
    costs = release.evidence.results.get("cost", {}).get("student", {})
    peaks = {t: release.evidence.metrics.get(f"timings/peak_memory_mb/{t}") for t in costs}
    rows = [
        _row(
            f"{tower.capitalize()} tower",
            {
                "Parameters": f"{facts['parameters'] / 1e6:,.2f} M",
                "Multiply-accumulates": f"{facts['macs'] / 1e6:,.1f} M",
                "Peak memory in PyTorch": "–" if peaks[tower] is None else f"{peaks[tower]:,.1f} MB",
            },
        )
        for tower, facts in costs.items()
    ]
    heads = ["Tower", "Parameters", "Multiply-accumulates", "Peak memory in PyTorch"]
    return join(element("h3", "Cost"), element("div", _table(heads, rows), class_="panel")) if rows else Markup("")


def _programs(release: Release) -> Markup:
    rows = []
    for program in release.evidence.contract.get("programs", []):
        error, tower = program["figures"]["error"], program["tower"]
        cells: dict[str, Any] = {
            "Format": f"{program.get('format', 'onnx')}, {program['precision']}",
            "Size": size_text(program["bytes"]),
            "Error": f"{error:.2g}",
            "Budget": f"{program['budget']:.2g}",
            "Proved": join(_mark(error <= program["budget"]), "" if program["executed"] else " (emulated)"),
        }
        for name in ("threads_1", "threads_2"):
            time = release.timings.get(tower, {}).get(name, {}).get(program["path"])
            label = "One thread" if name == "threads_1" else "Two threads"
            cells[label] = _times(time)
        peak = release.timings.get("load", {}).get(program["path"], {}).get("peak_mb")
        cells["Memory"] = "–" if peak is None else f"{peak:,.0f} MB"
        rows.append(_row(program["path"], cells))
    if not rows:
        return Markup("")
    for tower in ("image", "text"):
        for name, row in release.timings.get(tower, {}).get("threads_1", {}).items():
            if name == "eager":
                second = release.timings[tower].get("threads_2", {}).get("eager")
                empty = {"Format": "PyTorch", "Size": "–", "Error": "–", "Budget": "–", "Proved": "–"}
                cells = {**empty, "One thread": _times(row), "Two threads": _times(second), "Memory": "–"}
                rows.append(_row(f"{tower} tower, eager", cells))
    note = "Error: largest distance of a program's embeddings from the student's, relative to the centered embeddings. "
    note += "Emulated: its own runtime exists on other systems alone and has not run it. "
    note += "Latency: median and 95th percentile in ms of warm turns with one picture or text. "
    note += "Memory: how far loading a program and one call raise a process."
    heads = ["Program", "Format", "Size", "Error", "Budget", "Proved", "One thread", "Two threads", "Memory"]
    return join(element("p", note, class_="note"), element("div", _table(heads, rows), class_="panel"))


def _times(row: Mapping[str, float] | None) -> str:
    return "–" if row is None else f"{row['p50_ms']:.2f} / {row['p95_ms']:.2f}"


def _chain(release: Release) -> Markup:
    trace = release.trace
    stages = [
        _row(
            node.stage,
            {
                "Record": _digest(node.digest), "Configuration": _digest(node.record["config"]),
                "Code": _digest(node.record["code"]), "Digests checked": f"{node.checked:,}",
            },
        )
        for node in trace.nodes
    ]  # fmt: skip
    uses: dict[tuple[str, str], list[str]] = {}
    for use in trace.uses:
        uses.setdefault((use.stage, use.license), []).append(use.what)
    rows = [
        _row(stage, {"What": ", ".join(dict.fromkeys(things)), "License": name, "Terms": classify(name).label})
        for (stage, name), things in uses.items()
    ]
    terms, reasons = binding(trace.uses)
    sentence = f"The most restrictive license binds: {terms.label}, because of {because(reasons)}."
    problems = [element("p", problem, class_="no") for problem in trace.problems]
    heads = ["Stage", "Record", "Configuration", "Code", "Digests checked"]
    return join(
        element("p", "Every stage from the student back to the data, with the digests that were computed again."),
        problems,
        element("div", _table(heads, stages), class_="panel"),
        element("h3", "Licenses"),
        element("p", sentence),
        element("div", _table(["Stage", "What", "License", "Terms"], rows), class_="panel"),
    )


def _mark(passed: bool) -> Markup:
    return element("span", "yes" if passed else "no", class_="yes" if passed else "no")


def _table(heads: list[str], rows: Sequence[Markup]) -> Markup:
    cells = [element("th", head, scope="col", class_=_class(head)) for head in heads]
    return element("table", element("thead", element("tr", cells)), element("tbody", rows), class_="wide")


def _row(name: str, cells: Mapping[str, Any]) -> Markup:
    return element(
        "tr",
        element("th", name, scope="row"),
        [element("td", v, data_label=k, class_=_class(k)) for k, v in cells.items()],
    )


def _class(head: str) -> str | None:
    """Numbers stand at the right; what follows them keeps its distance."""
    return "num" if head in _NUMBERS else "apart" if head in {"Verdict", "Proved"} else None


def _digest(value: str) -> Markup:
    return element("code", value[:_SHOWN], title=f"sha256 {value}")
