"""The model card: what a student is, what it was made from, what it can do, and what its licenses allow."""

from collections.abc import Mapping, Sequence
from typing import Any

from mobileclip.lineage import attribution
from mobileclip.lineage.licenses import Terms, because, binding
from mobileclip.lineage.trace import Trace

_MEANING = {
    Terms.PERMISSIVE: "Every recorded license allows use, change and sale; keep the notices.",
    Terms.SHARE_ALIKE: "Sale is allowed; what is made from it may have to carry the same license.",
    Terms.UNKNOWN: "At least one license is not known, so no permission can be shown.",
    Terms.RESEARCH_ONLY: "At least one license forbids commercial use or derivatives.",
}
_USE = """## Use

Image and text embeddings for retrieval and zero-shot classification. The scores below hold for pictures and texts like
those it was evaluated on; it was tested for no other purpose, least of all for decisions about people."""
_HEADLINES = ("retrieval/i2t/r1", "retrieval/i2t/r10", "retrieval/t2i/r1", "retrieval/t2i/r10", "retrieval/mean/r1")


def model_card(
    found: Trace,
    *,
    name: str,
    card: Mapping[str, Any],
    metrics: Mapping[str, float],
    contract: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]],
) -> str:
    """Markdown, a function of its arguments alone.

    Args:
        found: Lineage of the student.
        name: Name in the registry.
        card: The student's `model.json`.
        metrics: Evaluate's metrics.
        contract: Export's contract; may be empty.
        verdicts: Rows of the gates.
    """
    parts = [
        f"# {name}",
        _summary(card, contract),
        _USE,
        _evaluation(metrics),
        _programs(contract),
        _gates(verdicts),
        _licenses(found),
        _attributions(card),
        _chain(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(card: Mapping[str, Any], contract: Mapping[str, Any]) -> str:
    teachers = ", ".join(card.get("teachers", {})) or "none"
    rows = [
        ("Architecture", card.get("model", "unknown")),
        ("Weights (sha256)", f"`{card.get('sha256', 'unknown')}`"),
        ("Teachers", teachers),
        ("Share of distillation loss", card.get("distill_weight", "unknown")),
        ("Synthetic captions", ", ".join(card.get("synthetic", [])) or "none"),
        ("License of the weights", card.get("license", "unknown")),
    ]
    if contract:
        rows.append(("Embedding", f"{contract['embed_dim']} values, unit length"))
        rows.append(("Input", f"{contract['image']['size']} px RGB, {contract['text']['context_length']} tokens"))
    return _table(("", "Value"), rows)


def _evaluation(metrics: Mapping[str, float]) -> str:
    names = [n for n in _HEADLINES if f"student/{n}" in metrics]
    names += sorted(
        n.removeprefix("student/")
        for n in metrics
        if n.startswith("student/zero_shot/") and n.endswith(("top1", "top5"))
    )
    rows = [(n, _interval(metrics, f"student/{n}"), _interval(metrics, f"control/{n}")) for n in names]
    if not rows:
        return ""
    text = f"## Evaluation\n\n{metrics.get('samples', 0):g} samples; shares with their bootstrap intervals.\n\n"
    return text + _table(("Metric", "Student", "Plain CLIP control"), rows)


def _interval(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    value = f"{metrics[name]:.3f}"
    if f"{name}/low" not in metrics:
        return value
    return f"{value} [{metrics[f'{name}/low']:.3f}, {metrics[f'{name}/high']:.3f}]"


def _programs(contract: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{p['path']}`", f"{p['bytes'] / 2**20:.2f}", f"{p['figures']['error']:.2e}", f"{p['budget']:.2e}",
            "executed" if p["executed"] else "emulated",
        )
        for p in contract.get("programs", [])
    ]  # fmt: skip
    return "## Programs\n\n" + _table(("File", "MiB", "Error", "Budget", "Proof"), rows) if rows else ""


def _gates(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = [(v["gate"], v["got"], v["want"], "yes" if v["passed"] else "**no**") for v in verdicts]
    return "## Gates\n\n" + _table(("Gate", "Got", "Want", "Passed"), rows) if rows else ""


def _licenses(found: Trace) -> str:
    terms, reasons = binding(found.uses)
    rows = [(use.stage, use.what, use.license, use.terms.label) for use in found.uses]
    return (
        f"## Licenses\n\nThe most restrictive one binds the student: **{terms.label}**, because of {because(reasons)}. "
        f"{_MEANING[terms]}\n\n" + _table(("Stage", "What", "License", "Terms"), rows)
    )


def _attributions(card: Mapping[str, Any]) -> str:
    text = attribution.markdown(attribution.of_card(card))
    return f"## Attributions\n\n{text}" if text else ""


def _chain(found: Trace) -> str:
    rows = [(n.stage, f"`{n.digest[:16]}`", f"`{n.record['config'][:16]}`", n.record["version"]) for n in found.nodes]
    rows += [(f"(input of {stage})", f"`{digest[:16]}`", name, "") for stage, name, digest, _ in found.outside]
    text = "## Lineage\n\nDigests of the records, from the student back to the data.\n\n"
    return text + _table(("Stage", "Record", "Config", "Version"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
