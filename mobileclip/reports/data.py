"""The report's last part: what the numbers stand on (models, data, licenses) and the rules by which they were made."""

import json
from typing import Any

from mobileclip.manifest import Manifest
from mobileclip.reports.html_elements import Markup, element, join
from mobileclip.reports.text import NAMES

_SHOWN = 12


def describe(content: Manifest) -> dict[str, Any]:
    """The manifest's facts for the page: digest, shards by split, columns, sources."""
    splits = dict.fromkeys(shard.split for shard in content.shards)
    return {
        "digest": content.digest(),
        "quarantined": content.quarantined,
        "scales": content.scales,
        "shards": [
            {
                "split": split,
                "shards": len(content.split(split)),
                "samples": sum(shard.samples for shard in content.split(split)),
                "bytes": sum(shard.bytes for shard in content.split(split)),
            }
            for split in splits
        ],
        "columns": [
            {
                "name": column.name,
                "kind": column.kind,
                "computed_on": column.computed_on,
                "license": column.license,
                "rows": sum(part.samples for part in column.parts.values()),
                "bytes": sum(part.bytes for part in column.parts.values()),
                "digest": column.spec_sha256,
            }
            for column in content.columns
        ],
        "sources": [source.model_dump(mode="json") for source in content.sources],
    }


def lineage_section(models: dict[str, dict[str, Any]], dataset: dict[str, Any]) -> Markup:
    """Models, data and columns with their digests and licenses."""
    return join(
        element("h3", "Models"),
        element("div", _models_table(models), class_="panel"),
        element("h3", "Dataset"),
        element(
            "p",
            "Manifest ",
            _digest(dataset["digest"]),
            f", {dataset['quarantined']:,} samples quarantined.",
            class_="note",
        ),
        element("div", _shards_table(dataset["shards"]), class_="panel"),
        [element("h3", "Columns"), element("div", _columns_table(dataset["columns"]), class_="panel")]
        if dataset["columns"]
        else None,
        [element("h3", "Sources and licenses"), element("div", _sources_table(dataset["sources"]), class_="panel")]
        if dataset["sources"]
        else None,
    )


def method_section(results: dict[str, Any], config: dict[str, Any]) -> Markup:
    """Rules of the evaluation in words, and the configuration."""
    level = f"{100 * results['confidence']:g}%"
    rules = {
        "Retrieval": "A picture is right at k when any of its captions is among the first k texts; each caption is a "
        "query of its own. Captions equal up to case and spacing are one text, and every picture that carries it is "
        "a right answer. A slice searches among its own pictures and captions.",
        "Zero-shot": "A class embedding is the renormalized mean of its prompts' embeddings. A slice keeps all "
        "classes; calibration error has 15 equal-width bins.",
        "Ties": "A wrong answer with the same score counts before the right one, so a collapsed model scores zero.",
        "Chance and majority": "Chance is a random order. Majority never looks at the query: most frequent classes, "
        "or the captions and pictures with most matches, first.",
        "Intervals": f"{level} percentile bootstrap over pictures, {results['resamples']:,} resamples, seed "
        f"{results['seed']}. All captions of a picture are drawn together. Intervals of minima and of the calibration "
        "error lean to one side, as every bootstrap of them does.",
        "Verdict": "Both models are scored on the same resamples. “Better” or “worse” needs an interval of the "
        "difference that leaves out zero, and enough pictures on which the models differ for an exact sign test to "
        "reach the level; else there is “no evidence”. The headline metric is named in the configuration, before the "
        "numbers are known; the other verdicts are not corrected for their number.",
    }
    items = [element("div", element("dt", name), element("dd", text)) for name, text in rules.items()]
    shown = element("pre", element("code", json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)))
    return join(
        element("dl", items, class_="rules"),
        element("details", element("summary", "Configuration of this evaluation"), shown),
    )


def _models_table(models: dict[str, dict[str, Any]]) -> Markup:
    body = []
    for name, facts in models.items():
        card = facts["card"]
        trained = [
            ("λ", card.get("distill_weight")),
            ("teachers", ", ".join(card.get("teachers", {})) or "none"),
            ("synthetic captions", ", ".join(card.get("synthetic", [])) or "none"),
        ]
        recipe = "; ".join(f"{key} {value}" for key, value in trained if value is not None)
        cells = {
            "Architecture": facts["architecture"],
            "Parameters": f"{facts['parameters'] / 1e6:,.2f} M",
            "Recipe": recipe,
            "License": facts["license"],
            "Weights": _digest(facts["sha256"]),
        }
        body.append(_row(NAMES[name], cells, numbers={"Parameters"}))
    return _table(["Model", "Architecture", "Parameters", "Recipe", "License", "Weights"], body, {"Parameters"})


def _shards_table(shards: list[dict[str, Any]]) -> Markup:
    numbers = {"Shards", "Samples", "Size"}
    body = [
        _row(
            row["split"],
            {"Shards": f"{row['shards']:,}", "Samples": f"{row['samples']:,}", "Size": size_text(row["bytes"])},
            numbers,
        )
        for row in shards
    ]
    return _table(["Split", "Shards", "Samples", "Size"], body, numbers)


def _columns_table(columns: list[dict[str, Any]]) -> Markup:
    numbers = {"Samples", "Size"}
    body = []
    for row in columns:
        cells = {
            "Kind": row["kind"],
            "Computed on": ", ".join(row["computed_on"]) or "shards",
            "Samples": f"{row['rows']:,}",
            "Size": size_text(row["bytes"]),
            "License": row["license"],
            "Spec": _digest(row["digest"]),
        }
        body.append(_row(row["name"], cells, numbers))
    return _table(["Column", "Kind", "Computed on", "Samples", "Size", "License", "Spec"], body, numbers)


def _sources_table(sources: list[dict[str, Any]]) -> Markup:
    body = [
        _row(
            row["name"],
            {"License": row["license"], "Attribution": row["attribution"] or "–", "Samples": f"{row['samples']:,}"},
            {"Samples"},
        )
        for row in sources
    ]
    return _table(["Source", "License", "Attribution", "Samples"], body, {"Samples"})


def size_text(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _table(heads: list[str], body: list[Markup], numbers: set[str]) -> Markup:
    cells = [element("th", head, scope="col", class_="num" if head in numbers else None) for head in heads]
    return element("table", element("thead", element("tr", cells)), element("tbody", body), class_="wide")


def _row(name: str, cells: dict[str, Any], numbers: set[str]) -> Markup:
    return element(
        "tr",
        element("th", name, scope="row"),
        [element("td", v, data_label=k, class_="num" if k in numbers else None) for k, v in cells.items()],
    )


def _digest(value: str) -> Markup:
    return element("code", value[:_SHOWN], title=f"sha256 {value}")
