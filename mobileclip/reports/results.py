"""The report's numbers: verdict, interval chart, tables and learning curves."""

from typing import Any

from mobileclip.evaluation.scores import CONTROL, STUDENT
from mobileclip.reports.charts import interval_chart, legend, line_chart, percent_text
from mobileclip.reports.html_elements import Markup, element, join
from mobileclip.reports.text import (
    NAMES,
    SHORT_NAMES,
    SIDES,
    delta_range_text,
    delta_text,
    is_rank,
    metric_label,
    range_text,
    value_text,
)


def verdict_title(results: dict[str, Any]) -> str:
    """The verdict on the headline metric as one sentence."""
    row = results["scopes"][0]["metrics"][results["headline"]]
    if "delta" not in row:
        return "The student, evaluated without a control"
    return {
        "better": "The student is better than the plain-CLIP control",
        "worse": "The student is worse than the plain-CLIP control",
        "no evidence": "No evidence that the student differs from the plain-CLIP control",
    }[row["delta"]["verdict"]]


def headline_sentence(results: dict[str, Any]) -> Markup:
    """The headline metric with its numbers, and the verdict in every slice."""
    metric, whole = results["headline"], results["scopes"][0]
    row = whole["metrics"][metric]
    task, measure = metric_label(metric)
    measure = measure.split(" (", maxsplit=1)[0]
    level = percent_text(results["confidence"], digits=0)
    name = f"{measure} ({task[0].lower()}{task[1:]})"
    student = element("b", value_text(metric, row[STUDENT]["value"]))
    if "delta" not in row:
        span = range_text(metric, row[STUDENT])
        return join(f"{name} is ", student, f" ({level} interval {span}); {_chance_text(metric, row)}.")
    delta = row["delta"]
    unit = "" if is_rank(metric) else " points"
    return join(
        f"{name} is ", student, " against ", element("b", value_text(metric, row[CONTROL]["value"])),
        ", a difference of ", element("b", delta_text(metric, delta["value"]) + unit),
        f" ({level} paired interval {delta_range_text(metric, delta)}; {_chance_text(metric, row)}).",
        _slices_sentence(results),
    )  # fmt: skip


def results_section(results: dict[str, Any]) -> Markup:
    """Interval chart of the main metrics, then the whole table, then one table per slice."""
    whole, *slices = results["scopes"]
    names = {name: NAMES[name] for name in NAMES if name in whole["metrics"][results["headline"]]}
    chart = interval_chart([chart_row(metric, whole["metrics"][metric], names) for metric in main_metrics(results)])
    levels = {"chance": "Chance", "majority": "Majority"}
    field = results["slice_field"]
    return join(
        element(
            "p",
            "Bars are intervals over the choice of evaluation pictures. A verdict compares both models on the same "
            "pictures; it does not speak for other training seeds.",
            class_="note",
        ),
        element("div", legend({**names, **levels}), chart, class_="panel"),
        element("h3", f"All {whole['samples']:,} pictures of the {results['split']} split"),
        element("div", score_table(whole["metrics"], names, results["headline"]), class_="panel"),
        [
            element(
                "details",
                element("summary", f"{field} = {scope['value']} ", element("span", _slice_summary(results, scope))),
                element("div", score_table(scope["metrics"], names, results["headline"]), class_="panel"),
            )
            for scope in slices
        ],
    )


def score_table(metrics: dict[str, Any], names: dict[str, str], headline: str) -> Markup:
    """Every metric: value and interval per model, paired difference, verdict, chance and majority."""
    columns = [names[name] for name in names]
    paired = len(names) == 2
    if paired:
        columns += ["Difference", "Verdict"]
    columns += ["Chance", "Majority"]
    heads = [element("th", c, scope="col", class_="num" if c != "Verdict" else "apart") for c in columns]
    body: list[Markup] = []
    last = ""
    for metric, row in metrics.items():
        task, measure = metric_label(metric)
        if task != last:
            body.append(element("tr", element("th", task, colspan=len(columns) + 1, scope="colgroup"), class_="task"))
            last = task
        cells = [_value_cell(metric, row[name], SHORT_NAMES[name]) for name in names]
        if paired:
            cells += [_delta_cell(metric, row["delta"]), _verdict_cell(row["delta"]["verdict"])]
        cells += [_level_cell(metric, row["chance"], "Chance"), _level_cell(metric, row["majority"], "Majority")]
        name = element("th", measure, scope="row")
        body.append(element("tr", name, cells, class_="head" if metric == headline else None))
    head = element("thead", element("tr", element("th", "Metric", scope="col"), heads))
    return element("table", head, element("tbody", body), class_="wide scores")


def curves_section(history: list[dict[str, Any]]) -> Markup:
    """One small chart per validation score and loss that has at least two points."""
    keys = list(dict.fromkeys(key for point in history for key in point))
    shown = [k for k in keys if k.startswith("validation/")] + [k for k in keys if k == "loss" or k.startswith("loss/")]
    charts = []
    for key in shown:
        curves = {
            name: [(float(p["samples"]), float(p[key])) for p in history if p["model"] == name and key in p]
            for name in NAMES
        }
        # A term that a model does not have is logged as zero throughout.
        curves = {name: points for name, points in curves.items() if len(points) > 1 and any(y for _, y in points)}
        if curves:
            title, percent = _curve_title(key)
            charts.append(line_chart(curves, title=title, x_label="samples seen", percent=percent))
    if not charts:
        return Markup("")
    note = (
        "Validation scores can be compared between the models. Losses cannot: the student's loss has the distillation "
        "terms, the control's has not."
    )
    return join(
        element("p", note, class_="note"),
        element("div", legend(NAMES), element("div", charts, class_="charts"), class_="panel"),
    )


def main_metrics(results: dict[str, Any]) -> list[str]:
    """The headline and a few that everybody reads, shares alone."""
    metrics = results["scopes"][0]["metrics"]
    wanted = [results["headline"], "retrieval/i2t/r1", "retrieval/t2i/r1", "retrieval/i2t/r10", "retrieval/t2i/r10"]
    wanted += [f"zero_shot/{field}/top1" for field in results["classifications"]]
    return [metric for metric in dict.fromkeys(wanted) if metric in metrics and not is_rank(metric)]


def chart_row(
    metric: str, row: dict[str, Any], names: dict[str, str]
) -> tuple[str, dict[str, tuple[float, float, float]], dict[str, float]]:
    """One row of the interval chart: label, (value, low, high) by model, reference levels."""
    task, measure = metric_label(metric)
    series = {name: (row[name]["value"], row[name]["low"], row[name]["high"]) for name in names}
    levels = {name: row[name] for name in ("chance", "majority") if row[name] is not None}
    measure = measure.split(" (", maxsplit=1)[0]
    return f"{measure}, {task.split(', ', maxsplit=1)[1]}", series, levels


def _chance_text(metric: str, row: dict[str, Any]) -> str:
    return f"chance level {value_text(metric, row['chance'])}" if row["chance"] is not None else "no chance level"


def _slices_sentence(results: dict[str, Any]) -> str:
    parts = []
    for scope in results["scopes"][1:]:
        verdict = scope["metrics"][results["headline"]]["delta"]["verdict"]
        parts.append(f"{verdict} where {results['slice_field']} is {scope['value']}")
    if not parts or len(parts) > 4:
        return ""
    text = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    return f" In slices: {text}."


def _slice_summary(results: dict[str, Any], scope: dict[str, Any]) -> str:
    metric = results["headline"]
    row = scope["metrics"][metric]
    text = (
        f"{scope['samples']:,} pictures; {metric_label(metric)[1].lower()} {value_text(metric, row[STUDENT]['value'])}"
    )
    if "delta" not in row:
        return text
    return f"{text} against {value_text(metric, row[CONTROL]['value'])}, {row['delta']['verdict']}"


def _value_cell(metric: str, row: dict[str, Any], label: str) -> Markup:
    span = element("span", range_text(metric, row), class_="range")
    return element("td", value_text(metric, row["value"]), span, class_="num", data_label=label)


def _delta_cell(metric: str, row: dict[str, Any]) -> Markup:
    span = element("span", delta_range_text(metric, row), class_="range")
    return element("td", delta_text(metric, row["value"]), span, class_="num", data_label="Difference")


def _verdict_cell(verdict: str) -> Markup:
    mark = element("span", verdict, class_=f"verdict {verdict.replace('no evidence', 'none')}")
    return element("td", mark, class_="apart", data_label="Verdict")


def _level_cell(metric: str, value: float | None, label: str) -> Markup:
    return element("td", value_text(metric, value), class_="num level-value", data_label=label)


def _curve_title(key: str) -> tuple[str, bool]:
    if not key.startswith("validation/"):
        return "Training loss, whole" if key == "loss" else f"Training loss, {key.rpartition('/')[2]} term", False
    parts = key.split("/")[1:]
    side = SIDES.get(parts[0], parts[0])
    measure = f"recall at {parts[-1][1:]}" if parts[-1][1:].isdigit() else " ".join(parts[1:])
    return f"Validation {measure}, {side}", parts[-1][1:].isdigit()
