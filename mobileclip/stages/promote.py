"""promote: register the student with all its evidence, and let the gates decide whether it becomes champion."""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mobileclip import storage
from mobileclip.config import Promote
from mobileclip.lineage import provenance
from mobileclip.lineage.licenses import binding
from mobileclip.promotion import candidates, gates, log, registered, registry, student_model
from mobileclip.promotion import evidence as evidences
from mobileclip.promotion.evidence import Bundle, as_json
from mobileclip.promotion.gates import Verdict
from mobileclip.promotion.log import Log
from mobileclip.promotion.registry import CHALLENGER, Registry
from mobileclip.reports import release as release_report
from mobileclip.reports.release import Release
from mobileclip.tracking.protocol import Tracker


def run(
    config: Promote, *, out: str, tracker: Tracker, student: str, evaluation: str, programs: str
) -> dict[str, float]:
    """Register `student` as a version, set `challenger`, and `champion` if every gate passes.

    Writes `verdicts.json` (every gate), `lineage.json`, `model_card.md`, `release.html` (evaluate's report with the
    decision, the champion, latencies and programs), and `registry.json` (what the registry answered). A refusal is a
    normal result: `promoted` is 0 and the verdicts tell why.

    Args:
        config: The `promote` section.
        out: Output folder or URI.
        tracker: Gets verdicts and model card.
        student: Output folder of distill.
        evaluation: Output folder of evaluate.
        programs: Output folder of export.

    Returns:
        `promoted` (1 or 0), `gates` and `gates_passed`.

    Raises:
        DataError: A folder lacks what its stage writes.
        ConfigError: The registry does not answer.
    """
    where = registry.connect(config.model_name)
    base = log.read(where)  # before anything is decided: a change that comes in between makes this one void
    files = config.gate.lineage == "files"
    bundle = evidences.gather(student=student, evaluation=evaluation, programs=programs, files=files)
    champion = evidences.of_champion(config.model_name, base.champion)
    verdicts = gates.decide(config.gate, bundle.evidence, champion)
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch)
        evidences.keep(bundle, kept, name=config.model_name, verdicts=verdicts)
        timings = evidences.read_timings(programs)
        scores = candidates.score_tags(bundle.evidence, timings)
        number = _register(where, bundle, verdicts, kept, run_id=getattr(tracker, "run_id", ""), scores=scores)
        for name in ("lineage.json", "model_card.md"):
            storage.write_bytes(storage.join(out, name), (kept / name).read_bytes())
    where.point(CHALLENGER, number)
    verdicts, answer = _decide(where, base, config, number, verdicts, bundle)
    storage.write_bytes(storage.join(out, "verdicts.json"), as_json([verdict.as_dict() for verdict in verdicts]))
    storage.write_bytes(storage.join(out, "registry.json"), as_json(answer))
    names = ["verdicts.json", "model_card.md"]
    page = storage.join(evaluation, "report.html")
    if storage.exists(page):
        metric = str(bundle.evidence.results["headline"])
        shown = candidates.latest(where.versions(), metric=metric, own=number, champion=base.champion)
        release = Release(config.model_name, number, verdicts, bundle.evidence, champion, bundle.trace, timings, shown)
        text = release_report.render(storage.read_bytes(page).decode(), release)
        storage.write_bytes(storage.join(out, "release.html"), text.encode())
        names.append("release.html")
    for name in names:
        tracker.log_file(str(storage.local_copy(storage.join(out, name))))
    passed = [verdict.passed for verdict in verdicts]
    return {"promoted": float(all(passed)), "gates": float(len(passed)), "gates_passed": float(sum(passed))}


def _register(
    where: Registry,
    bundle: Bundle,
    verdicts: Sequence[Verdict],
    kept: Path,
    *,
    run_id: str,
    scores: Mapping[str, str],
) -> int:
    """The version that stands for this evidence; a second run with the same evidence finds the first one's."""
    where.ensure("Students of the MobileCLIP pipelines; who became champion and why is in NAME.promotions.")
    for version in reversed(where.versions()):
        if version.tags.get("evidence") == bundle.digest:
            where.tag(version.number, {**scores, **_verdict_tags(verdicts)})
            return version.number
    model_id = student_model.log(
        where.client, where.name, student=bundle.checkpoint, evidence=kept, run_id=run_id, example=_example()
    )
    tags = {**provenance.tags(), **_tags(bundle), **scores, **_verdict_tags(verdicts)}
    return where.create(f"models:/{model_id}", tags, run_id=run_id, model_id=model_id)


def _decide(
    where: Registry, base: Log, config: Promote, number: int, verdicts: list[Verdict], bundle: Bundle
) -> tuple[list[Verdict], dict[str, Any]]:
    """Write the event, let the alias follow the log, and tell what came of it."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    answer: dict[str, Any] = {"model": where.name, "version": number, "previous": base.champion}
    if failed or base.champion != number:
        event = {
            "kind": log.REFUSED if failed else log.PROMOTED,
            "version": number,
            "why": " ".join(verdict.reason for verdict in failed) or config.why or "All gates passed.",
            "evidence": bundle.digest,
            "student": bundle.card["sha256"],
        }
        written, _ = log.append(where, base, event)
        answer |= {"event": written.sequence, "outcome": written.outcome}
        if written.outcome == log.VOID:
            reason = "Another promotion came in between; this one was decided on a champion that is no longer there."
            verdicts = [*verdicts, Verdict("concurrency", f"event {written.sequence} void", "first", False, reason)]
            where.tag(number, _verdict_tags(verdicts))
    answer["champion"] = log.settle(where)
    return verdicts, answer


def _tags(bundle: Bundle) -> dict[str, str]:
    terms, reasons = binding(bundle.evidence.uses)
    return {
        "evidence": bundle.digest,
        **{f"record.{name}": digest for name, digest in bundle.records.items()},
        "dataset": str(bundle.card.get("dataset", "unknown")),
        registered.STUDENT_TAG: str(bundle.card["sha256"]),
        **registered.program_tags(bundle.evidence.contract),
        "architecture": str(bundle.card.get("model", "unknown")),
        "license": str(bundle.card.get("license", "unknown")),
        "license.terms": terms.label,
        "license.reasons": "; ".join(f"{use.what}: {use.license}" for use in reasons)[:5000],
    }


def _verdict_tags(verdicts: Sequence[Verdict]) -> dict[str, str]:
    lines = {f"gate.{v.gate}": f"{'passed' if v.passed else 'REFUSED'}: got {v.got}, want {v.want}" for v in verdicts}
    return {**lines, "verdicts": json.dumps([verdict.as_dict() for verdict in verdicts])}


def _example() -> bytes:
    """A small picture for the model's input example; any will do."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((80, 57)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
