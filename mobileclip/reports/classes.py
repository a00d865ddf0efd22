"""The report's zero-shot tasks: confusion matrices, recall per class, most frequent confusions."""

from typing import Any

from mobileclip.evaluation.scores import STUDENT
from mobileclip.reports.charts import heatmap, percent_text
from mobileclip.reports.html_elements import Markup, element, join
from mobileclip.reports.text import NAMES, SHORT_NAMES, range_text

_MATRIX_CLASSES = 16
_LISTED = 8


def classes_section(results: dict[str, Any]) -> Markup:
    """Confusion matrices of small tasks, most frequent confusions of large ones, recall per class."""
    return join([_task(field, task) for field, task in results["classifications"].items()])


def _task(field: str, task: dict[str, Any]) -> Markup:
    classes, models = task["classes"], task["models"]
    names = {name: NAMES[name] for name in NAMES if name in models}
    left_out = f" {task['left_out']:,} pictures without this field are left out." if task["left_out"] else ""
    prompts = ", ".join(f"“{template}”" for template in task["templates"])
    head = join(
        element("h3", f"Zero-shot, {field}"),
        element(
            "p", f"{len(classes)} classes, {task['samples']:,} pictures.{left_out} Prompts: {prompts}.", class_="note"
        ),
    )
    if len(classes) <= _MATRIX_CLASSES:
        maps = [heatmap(classes, models[name]["confusion"], title=label) for name, label in names.items()]
        note = "Rows are true classes, columns predictions by number, in percent of the row; framed cells are right."
        matrices = join(element("p", note, class_="note"), element("div", maps, class_="pair"))
        table = element(
            "details", element("summary", "Recall per class"), _class_table(task, classes, names, ranges=True)
        )
        return join(head, element("div", matrices, table, class_="panel"))
    ordered = sorted(classes, key=lambda c: (-models[STUDENT]["per_class"][c]["value"], c))
    shown = [*ordered[:_LISTED], *ordered[-_LISTED:]]
    tables = element(
        "div",
        element("figure", element("figcaption", element("b", "Best and worst classes of the student")),
                element("div", _class_table(task, shown, names), class_="scroll")),
        element("figure", element("figcaption", element("b", "Most frequent confusions of the student")),
                element("div", _confusions(classes, models[STUDENT]["confusion"]), class_="scroll")),
        class_="pair",
    )  # fmt: skip
    return join(head, element("div", tables, class_="panel"))


def _class_table(task: dict[str, Any], shown: list[str], names: dict[str, str], *, ranges: bool = False) -> Markup:
    heads = [element("th", label, class_="num") for label in ("Pictures", *(SHORT_NAMES[n] for n in names))]
    body = []
    for name in shown:
        rows = {model: task["models"][model]["per_class"][name] for model in names}
        cells = [
            element(
                "td",
                percent_text(row["value"]),
                element("span", range_text("", row), class_="range") if ranges else None,
                class_="num",
            )
            for row in rows.values()
        ]
        count = element("td", f"{rows[STUDENT]['samples']:,}", class_="num")
        body.append(element("tr", element("th", name, scope="row"), count, cells))
    return element("table", element("thead", element("tr", element("th", "Class"), heads)), element("tbody", body))


def _confusions(classes: list[str], counts: list[list[int]]) -> Markup:
    found = [
        (count, classes[true], classes[predicted], sum(row))
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    body = [
        element("tr", element("td", true), element("td", predicted), element("td", f"{n} of {total}", class_="num"))
        for n, true, predicted, total in found[: 2 * _LISTED]
    ]
    heads = [element("th", "True"), element("th", "Taken for"), element("th", "Pictures", class_="num")]
    return element("table", element("thead", element("tr", heads)), element("tbody", body))
