"""What the stages of one pipeline run did, left below its root: `ROOT/journal/RUN/STAGE.json`, one note per pod.

Pods and their logs vanish, and the API of Kubeflow Pipelines gives no error for a task. Each stage writes a note when
it begins and another when it ends; the exit handler gathers them into `report.json`. A note never fails its stage.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mobileclip import storage
from mobileclip.errors import ConfigError, DataError, MobileClipError
from mobileclip.kubeflow import sweep
from mobileclip.lineage import record as records

logger = logging.getLogger(__name__)

FOLDER = "journal"
REPORT = "report.json"
_LONGEST = 2000  # characters of an error that are kept
_BEGUN = "begun"


class TakenOverError(MobileClipError):
    """A later submission works in this root now."""


@dataclass(frozen=True)
class Note:
    """What one pod did for a stage.

    Attributes:
        stage: The stage; in a sweep `STUDENT/STAGE`.
        outcome: `begun`, `computed`, `current`, `failed`, `bad input` or `taken over`.
        seconds: How long it took.
        group: `INDEX/COUNT` of a stage that fans out, else empty.
        attempts: How often it has begun in this run.
        error: Why it failed, in one sentence.
        pod: Where its log is.
    """

    stage: str
    outcome: str = _BEGUN
    seconds: float = 0.0
    group: str = ""
    attempts: int = 1
    error: str = ""
    pod: str = ""


def run_id() -> str:
    """The pipeline run that this process is a part of; `local` on a machine without Kubeflow."""
    return os.environ.get("KFP_RUN_ID") or "local"


def report_path(root: str, run: str) -> str:
    """Where the report of a run lies."""
    return storage.join(root, FOLDER, run, REPORT)


@contextlib.contextmanager
def noted(root: str, stage: str, group: str = "") -> Iterator[list[str]]:
    """Note when a stage begins and how it ends.

    Yields:
        A list to which the body may append its outcome; without one it is `computed`.
    """
    place = storage.join(root, FOLDER, run_id(), f"{stage}{'-' if group else ''}{group.replace('/', '-of-')}.json")
    begun = Note(stage, group=group, attempts=_attempts(place) + 1, pod=socket.gethostname())
    _write(place, asdict(begun))
    logger.info("%s%s begins (attempt %d)", stage, f" group {group}" if group else "", begun.attempts)
    said: list[str] = []
    start = time.monotonic()

    def end(outcome: str, error: str = "") -> None:
        ended = replace(begun, outcome=outcome, seconds=round(time.monotonic() - start, 1), error=error[:_LONGEST])
        _write(place, asdict(ended))
        logger.info("%s %s after %.0f s%s", stage, outcome, ended.seconds, f": {error}" if error else "")

    try:
        yield said
    except TakenOverError as error:
        end("taken over", str(error))
        raise
    except (ConfigError, DataError) as error:
        end("bad input", str(error))
        raise
    except Exception as error:
        end("failed", str(error) if isinstance(error, MobileClipError) else f"{type(error).__name__}: {error}")
        raise
    end(said[-1] if said else "computed")


@contextlib.contextmanager
def noted_failure(root: str, stage: str) -> Iterator[None]:
    """Note that a stage's job failed; one that ends well is noted by what follows."""
    try:
        yield
    except Exception:
        with noted(root, stage):
            raise


def read(root: str, run: str) -> list[Note]:
    """All notes of a run, those of a sweep's students among them; empty where it has left none."""
    notes = _read(root, run, "")
    for student in storage.list_names(storage.join(root, sweep.FOLDER)):
        notes += _read(storage.join(root, sweep.FOLDER, student), run, f"{student}/")
    return notes


def gather(root: str, run: str, stages: Sequence[str], *, state: str, message: str = "") -> dict[str, Any]:
    """The report of a run: one row per stage, in the order of the chain.

    Args:
        root: Folder or `s3://` prefix of the run.
        run: Its id.
        stages: The pipeline's stages.
        state: `succeeded`, `failed` or `canceled`; a run that was taken over has failed for Kubeflow.
        message: What Kubeflow says of its end.
    """
    notes = read(root, run)
    names = [*stages, *dict.fromkeys(note.stage for note in notes if note.stage not in stages)]
    rows = [_row(root, name, [note for note in notes if note.stage == name]) for name in names]
    if state == "failed" and any(row["outcome"] == "taken over" for row in rows):
        state = "taken over"
    return {"run": run, "root": root, "outcome": state, "message": message, "stages": rows}


def write_report(report: Mapping[str, Any]) -> None:
    """Leave a report below its root."""
    _write(report_path(report["root"], report["run"]), report)


def has_bad_input(report: Mapping[str, Any]) -> bool:
    """Whether a stage refused what it was given: another attempt would refuse it again."""
    return any(row["outcome"] == "bad input" for row in report.get("stages", ()))


def progress(notes: Sequence[Note]) -> str:
    """What is at work, in one line: stages that have begun, and groups that are done."""
    parts = []
    for stage in dict.fromkeys(note.stage for note in notes):
        own = [note for note in notes if note.stage == stage]
        groups = [note for note in own if note.group]
        done = sum(note.outcome in {"computed", "current"} for note in groups)
        if any(note.outcome == _BEGUN for note in own):
            parts.append(f"{stage} ({done} of {_count(groups)} groups)" if groups else stage)
    return ", ".join(parts)


def render(report: Mapping[str, Any]) -> str:
    """The report as Markdown: what happened to each stage, and why those that failed did."""
    lines = [f"# Run {report['outcome']}", "", f"`{report['root']}`, run `{report['run']}`", ""]
    lines += ["| stage | outcome | time [s] | groups | attempts |", "|---|---|---|---|---|"]
    for row in report["stages"]:
        groups = f"{row['groups_done']} of {row['groups']}" if row["groups"] else ""
        lines.append(
            f"| {row['stage']} | {row['outcome']} | {row['seconds']:.0f} | {groups} | {row['attempts'] or ''} |"
        )
    for row in report["stages"]:
        for error in row["errors"]:
            where = f"log of pod `{error['pod']}`; once it is gone, `executor-logs` in Kubeflow's artifact store"
            name = f"{row['stage']} {error['group']}".strip()
            lines += ["", f"**{name}**: {error['error']}", f"({where})"]
    if report["message"]:
        lines += ["", f"Kubeflow says: {report['message']}"]
    return "\n".join(lines) + "\n"


def _row(root: str, stage: str, notes: Sequence[Note]) -> dict[str, Any]:
    groups = [note for note in notes if note.group]
    whole = [note for note in notes if not note.group]
    bad = [note for note in notes if note.outcome not in {"computed", "current", _BEGUN}]
    if bad:
        outcome = next((n.outcome for n in bad if n.outcome != "failed"), "failed")
    elif any(note.outcome == _BEGUN for note in notes):
        outcome = "killed"
    elif whole:
        outcome = "computed" if any(note.outcome == "computed" for note in notes) else "current"
    elif groups:
        outcome = "unfinished"
    else:
        outcome = "from cache" if _is_finished(root, stage) else "not reached"
    errors = [{"group": note.group, "error": note.error, "pod": note.pod} for note in bad]
    errors += [
        {"group": n.group, "error": "ended without a word: killed, evicted or out of memory.", "pod": n.pod}
        for n in notes if n.outcome == _BEGUN
    ]  # fmt: skip
    return {
        "stage": stage,
        "outcome": outcome,
        "seconds": sum(note.seconds for note in notes),
        "groups": _count(groups),
        "groups_done": sum(note.outcome in {"computed", "current"} for note in groups),
        "attempts": max((note.attempts for note in notes), default=0),
        "errors": errors,
    }


def _count(groups: Sequence[Note]) -> int:
    return max((int(note.group.partition("/")[2]) for note in groups), default=0)


def _is_finished(root: str, stage: str) -> bool:
    student, _, name = stage.rpartition("/")
    folder = storage.join(root, sweep.FOLDER, student) if student else root
    return storage.exists(storage.join(folder, name, records.RECORD))


def _read(root: str, run: str, prefix: str) -> list[Note]:
    folder = storage.join(root, FOLDER, run)
    notes = []
    for name in storage.list_names(folder):
        if name != REPORT:
            found = json.loads(storage.read_bytes(storage.join(folder, name)))
            notes.append(Note(**{**found, "stage": prefix + found["stage"]}))
    return notes


def _attempts(place: str) -> int:
    try:
        return int(json.loads(storage.read_bytes(place))["attempts"])
    except (MobileClipError, ValueError, KeyError):
        return 0


def _write(place: str, value: Mapping[str, Any]) -> None:
    try:
        storage.write_bytes(place, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
    except (MobileClipError, OSError) as error:
        logger.warning("no note of this stage at '%s' (%s)", place, error)
