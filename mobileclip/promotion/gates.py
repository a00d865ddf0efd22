"""What a student must show before it becomes champion: pure functions from evidence to verdicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mobileclip.config import Gate
from mobileclip.evaluation import paired as comparison
from mobileclip.lineage.licenses import Use, binding, is_allowed, not_commercial

_STUDENT = "student"


@dataclass(frozen=True)
class Verdict:
    """What one gate says.

    Attributes:
        gate: Its name.
        got: What was found.
        want: What the gate demands.
        passed: Whether it is met.
        reason: One sentence.
    """

    gate: str
    got: str
    want: str
    passed: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """A row of the table."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """All that speaks for or against a student.

    Attributes:
        metrics: Numbers by name: evaluate's as they are, export's below `export/`, times below `timings/`.
        results: `results.json` of evaluate.
        samples: Its per-sample table.
        contract: `contract.json` of export, with every program's error and budget.
        students: Digest of the student that each folder is about, by folder.
        problems: What the lineage does not prove.
        uses: Licensed things in the lineage.
    """

    metrics: Mapping[str, float]
    results: Mapping[str, Any] = field(default_factory=dict)
    samples: comparison.Rows = ()
    contract: Mapping[str, Any] = field(default_factory=dict)
    students: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    uses: Sequence[Use] = ()


@dataclass(frozen=True)
class Champion:
    """The present champion's evidence.

    Attributes:
        version: Its number in the registry.
        metrics: Its metrics.
        samples: Its per-sample table.
        weights: Digest of its weights.
    """

    version: int
    metrics: Mapping[str, float]
    samples: comparison.Rows
    weights: str = ""


def decide(gate: Gate, evidence: Evidence, champion: Champion | None) -> list[Verdict]:
    """Every gate's verdict, in a fixed order; the student passes where all of them do.

    Args:
        gate: The demands.
        evidence: The candidate's.
        champion: Whom it would replace; none = there is no champion yet.
    """
    found = [_same_student(evidence)]
    found.append(_bound(gate.metric, gate.minimum, evidence, least=True))
    found += [_bound(name, value, evidence, least=True) for name, value in gate.minimums.items()]
    found += [_bound(name, value, evidence, least=False) for name, value in gate.maximums.items()]
    optional: list[tuple[bool, Callable[[], Verdict]]] = [
        (gate.beat_control, lambda: _control(gate.metric, evidence)),
        (gate.regression_rule != "ignore", lambda: _regression(gate, evidence, champion)),
        (gate.require_export_proof, lambda: _export_proof(evidence)),
        (gate.lineage != "ignore", lambda: _lineage(gate.lineage, evidence)),
        (gate.commercial_use, lambda: _commercial(evidence)),
        (bool(gate.allowed_licenses), lambda: _allowed(gate.allowed_licenses, evidence)),
    ]
    return found + [verdict() for wanted, verdict in optional if wanted]


def _same_student(evidence: Evidence) -> Verdict:
    digests = sorted(set(evidence.students.values()))
    shown = ", ".join(f"{name}: {digest[:12]}" for name, digest in sorted(evidence.students.items()))
    same = len(digests) == 1
    reason = (
        "Evaluation and programs are about this student."
        if same
        else "Evaluation or programs are about another student."
    )
    return Verdict("same student", shown, "one student", same, reason)


def _bound(name: str, limit: float, evidence: Evidence, *, least: bool) -> Verdict:
    want = f"{'>=' if least else '<='} {limit:g}"
    value = evidence.metrics.get(name)
    label = f"{'minimum' if least else 'maximum'} {name}"
    if value is None:
        return Verdict(label, "absent", want, False, f"There is no metric '{name}' in the evidence.")
    passed = value >= limit if least else value <= limit
    return Verdict(label, f"{value:g}", want, passed, f"{name} is {value:g}, wanted {want}.")


def _control(metric: str, evidence: Evidence) -> Verdict:
    want = "student better than control, interval without zero"
    delta = _row(metric, evidence).get("delta")
    if not delta:
        return Verdict("control", "absent", want, False, f"There is no control to compare '{metric}' with.")
    got = f"{delta['value']:+g} [{delta['low']:+g}, {delta['high']:+g}]"
    passed = delta["verdict"] == "better"
    return Verdict("control", got, want, passed, f"Against the control: {delta['verdict']}.")


def _regression(gate: Gate, evidence: Evidence, champion: Champion | None) -> Verdict:
    """The paired interval where both were scored on the same samples; the bare difference where there is none."""
    want = f"loss of at most {gate.max_regression:g} ({gate.regression_rule})"
    if champion is None:
        return Verdict("champion", "none", want, True, "There is no champion yet.")
    name = f"version {champion.version}"
    ours, theirs = evidence.metrics.get(gate.metric), champion.metrics.get(gate.metric)
    if ours is None or theirs is None:
        return Verdict("champion", "absent", want, False, f"'{gate.metric}' is missing here or in {name}.")
    if champion.weights and champion.weights == _weights(evidence):
        return Verdict("champion", "the same weights", want, True, f"The student is {name} itself.")
    if not comparison.same_samples(evidence.samples, champion.samples):
        reason = f"{name} was scored on other samples; score both on the same ones, or set regression_rule to ignore."
        return Verdict("champion", "other samples", want, False, reason.capitalize())
    return _against(gate, evidence, champion, name, want)


def _against(gate: Gate, evidence: Evidence, champion: Champion, name: str, want: str) -> Verdict:
    found = comparison.paired(
        gate.metric, evidence.samples, champion.samples, confidence=gate.confidence,
        resamples=int(evidence.results.get("resamples", 1000)), seed=int(evidence.results.get("seed", 0)),
    )  # fmt: skip
    floor = -gate.max_regression
    if found is None:
        sign = 1 if _row(gate.metric, evidence).get("higher_is_better", True) else -1
        delta = evidence.metrics[gate.metric] - champion.metrics[gate.metric]
        reason = f"Against {name}: {delta:+g}, no paired interval for this metric."
        return Verdict("champion", f"{delta:+g}", want, sign * delta >= floor, reason)
    passed = {
        "point": found.gain >= floor,
        "not_worse": not (found.verdict == "worse" and found.most < floor),
        "non_inferior": found.shown >= floor,
    }[gate.regression_rule]
    got = f"{found.delta:+g} [{found.low:+g}, {found.high:+g}]"
    reason = f"Against {name} on the same {len(evidence.samples)} samples ({found.differing} differ): {found.verdict}."
    if not passed and found.gain >= floor:
        reason += f" These samples leave room for a loss of {-found.shown:.2g}."
    return Verdict("champion", got, want, passed, reason)


def _weights(evidence: Evidence) -> str:
    return str(evidence.contract.get("lineage", {}).get("student_sha256", "none"))


def _export_proof(evidence: Evidence) -> Verdict:
    want = "every program within its error budget"
    programs = evidence.contract.get("programs", [])
    if not programs:
        return Verdict("export proof", "absent", want, False, "There is no proof of an exported program.")
    over = [f"{p['path']} ({p['figures']['error']:g} > {p['budget']:g})" for p in programs if not _proved(p)]
    reason = f"Over budget: {', '.join(over)}." if over else f"All {len(programs)} programs are within budget."
    return Verdict("export proof", f"{len(programs) - len(over)} of {len(programs)}", want, not over, reason)


def _proved(program: Mapping[str, Any]) -> bool:
    return bool(program["figures"]["error"] <= program["budget"])  # false for NaN


def _lineage(depth: str, evidence: Evidence) -> Verdict:
    want = f"every digest agrees ({depth})"
    if not evidence.problems:
        return Verdict("lineage", "agrees", want, True, "Every digest from the student back to the data agrees.")
    shown = "; ".join(evidence.problems[:3])
    more = f" and {len(evidence.problems) - 3} more" if len(evidence.problems) > 3 else ""
    return Verdict("lineage", f"{len(evidence.problems)} problems", want, False, f"{shown}{more}.")


def _commercial(evidence: Evidence) -> Verdict:
    refused = not_commercial(evidence.uses)
    got = binding(evidence.uses)[0].label
    if refused or not evidence.uses:
        reason = f"Not shown to allow it: {_listed(refused)}." if refused else "No license is recorded at all."
        return Verdict("commercial use", got, "allowed by every license", False, reason)
    return Verdict("commercial use", got, "allowed by every license", True, "Every license allows commercial use.")


def _allowed(allowed: Sequence[str], evidence: Evidence) -> Verdict:
    other = [use for use in evidence.uses if not is_allowed(use.license, allowed)]
    reason = f"Not in the list: {_listed(other)}." if other else "Every license is in the list."
    got = ", ".join(sorted({use.license for use in evidence.uses})) or "none"
    return Verdict("licenses", got, ", ".join(allowed), bool(evidence.uses) and not other, reason)


def _listed(uses: Sequence[Use]) -> str:
    return "; ".join(f"{use.what} ({use.license})" for use in uses)


def _row(metric: str, evidence: Evidence) -> Mapping[str, Any]:
    """The row of `results.json` behind a flat metric name: `student/X`, or `slice/VALUE/student/X`."""
    scope, _, name = metric.rpartition(f"{_STUDENT}/")
    for found in evidence.results.get("scopes", []):
        if found["name"] == scope.rstrip("/"):
            return found["metrics"].get(name, {})  # type: ignore[no-any-return]
    return {}
