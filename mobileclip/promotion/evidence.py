"""All that speaks for a student, gathered from the folders of its stages and kept with its registered version."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.errors import DataError
from mobileclip.evaluation import paired as comparison
from mobileclip.lineage import places, view
from mobileclip.lineage import record as records
from mobileclip.lineage import trace as lineage
from mobileclip.lineage.trace import Trace
from mobileclip.promotion import registered, student_model
from mobileclip.promotion.gates import Champion, Evidence, Verdict
from mobileclip.promotion.model_card import model_card

_STUDENT = "student"
_CARD, _CONFIG = "model.json", "open_clip_config.json"
_EVALUATION = ("metrics.json", "results.json", "samples.jsonl", "timings.json")
_PROGRAMS = ("metrics.json", "contract.json", "proof.json", "timings.json")


@dataclass(frozen=True)
class Bundle:
    """A student with all that is known of it.

    Attributes:
        evidence: What the gates look at.
        traces: Lineage of each input folder, by name; they meet in the student's.
        card: Its `model.json`.
        checkpoint: Local folder with weights and configuration.
        folders: The input folders, by name.
        records: Digest of each input folder's record, by name.
    """

    evidence: Evidence
    traces: dict[str, Trace]
    card: dict[str, Any]
    checkpoint: Path
    folders: dict[str, str]
    records: dict[str, str]

    @property
    def trace(self) -> Trace:
        """Lineage of the student."""
        return self.traces["student"]

    @property
    def digest(self) -> str:
        """One digest for student, evaluation and programs together."""
        return hashlib.sha256(json.dumps(self.records, sort_keys=True).encode()).hexdigest()


def gather(*, student: str, evaluation: str, programs: str, files: bool) -> Bundle:
    """Read and check the outputs of distill, evaluate and export.

    Args:
        student: Output folder of distill, or the checkpoint folder in it.
        evaluation: Output folder of evaluate.
        programs: Output folder of export.
        files: Hash shards and columns anew as well.

    Raises:
        DataError: A folder lacks what its stage writes.
    """
    folders = {"student": student, "evaluation": evaluation, "programs": programs}
    roots = [root for folder in folders.values() for root in places.surroundings(folder)]
    traces = {
        name: registered.trace(folder, roots=list(dict.fromkeys(roots)), files=files and name == "student")
        for name, folder in folders.items()
    }
    checkpoint = storage.local_dir(_checkpoint(student))
    card = json.loads((checkpoint / _CARD).read_text())
    contract = _read_json(programs, "contract.json")
    evidence = Evidence(
        metrics={**_numbers(evaluation, ""), **_numbers(programs, "export/")},
        results=_read_json(evaluation, "results.json"),
        samples=comparison.read_rows(storage.read_bytes(storage.join(evaluation, "samples.jsonl"))),
        contract=contract,
        students=_students(folders, traces, card, contract),
        problems=list(dict.fromkeys(problem for found in traces.values() for problem in found.problems)),
        uses=traces["student"].uses,
    )
    records = {name: found.nodes[0].digest for name, found in traces.items()}
    return Bundle(evidence, traces, card, checkpoint, folders, records)


def keep(bundle: Bundle, folder: Path, *, name: str, verdicts: Sequence[Verdict]) -> None:
    """Lay everything small in one folder: reports, contract, records, lineage, verdicts and the model card.

    Args:
        bundle: From `gather`.
        folder: Where to; new.
        name: Name in the registry.
        verdicts: The gates' verdicts.
    """
    for kind, names in (("evaluation", _EVALUATION), ("programs", _PROGRAMS)):
        for file in names:
            uri = storage.join(bundle.folders[kind], file)
            if storage.exists(uri):
                storage.write_bytes(folder / kind / file, storage.read_bytes(uri))
    for found in bundle.traces.values():
        lineage.copy_records(found, folder / lineage.COPIES)
    rows = [verdict.as_dict() for verdict in verdicts]
    text = model_card(
        bundle.trace, name=name, card=bundle.card, metrics=bundle.evidence.metrics,
        contract=bundle.evidence.contract, verdicts=rows,
    )  # fmt: skip
    storage.write_bytes(folder / "model_card.md", text.encode())
    storage.write_bytes(folder / "lineage.json", as_json(view.as_dict(bundle.trace)))
    storage.write_bytes(folder / "verdicts.json", as_json(rows))


def of_champion(name: str, number: int) -> Champion | None:
    """The champion's evidence as it was kept with its version; none where the number is 0."""
    if not number:
        return None
    root = student_model.download(name, number, "evidence")
    folder, contract = root / "evaluation", _read_json(str(root / "programs"), "contract.json")
    return Champion(
        number, _numbers(str(folder), ""), comparison.read_rows((folder / "samples.jsonl").read_bytes()),
        weights=str(contract["lineage"]["student_sha256"]),
    )  # fmt: skip


def read_timings(programs: str) -> dict[str, Any]:
    """Latencies that export measured, by tower, threads and program; empty where it measured none."""
    return _read_json(programs, "timings.json", optional=True)


def as_json(value: Any) -> bytes:
    """Canonical JSON."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _checkpoint(student: str) -> str:
    for folder in (storage.join(student, _STUDENT), student):
        if storage.exists(storage.join(folder, _CONFIG)):
            return folder
    raise DataError(f"promote: no checkpoint at '{student}', want the output folder of distill.")


def _students(
    folders: Mapping[str, str], traces: Mapping[str, Trace], card: Mapping[str, Any], contract: Mapping[str, Any]
) -> dict[str, str]:
    """Which student each folder is about, by the digest of the student's folder; programs by their weights too."""
    own = records.input_digest(folders["student"])
    found = {"student": own}
    for name in ("evaluation", "programs"):
        found[name] = str(traces[name].nodes[0].record["inputs"].get(_STUDENT, "none"))
    if contract and contract["lineage"]["student_sha256"] != card["sha256"]:
        found["contract"] = str(contract["lineage"]["student_sha256"])
    return found


def _numbers(folder: str, prefix: str) -> dict[str, float]:
    """`metrics.json` as it is and `timings.json` below `timings/`, nested names joined by slashes."""
    found = _flat(_read_json(folder, "metrics.json"), prefix)
    return {**found, **_flat(_read_json(folder, "timings.json", optional=True), f"{prefix}timings/")}


def _flat(value: Any, prefix: str) -> dict[str, float]:
    if isinstance(value, Mapping):
        pairs = [_flat(v, f"{prefix}{k}/") for k, v in value.items()]
        return {k: v for pair in pairs for k, v in pair.items()}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {prefix.rstrip("/"): float(value)}
    return {}


def _read_json(folder: str, name: str, *, optional: bool = False) -> dict[str, Any]:
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        if optional:
            return {}
        raise DataError(f"promote: no '{name}' in '{folder}', want the output folder of its stage.")
    return json.loads(storage.read_bytes(uri))  # type: ignore[no-any-return]
