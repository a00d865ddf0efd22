"""Waiting for a run: what it is doing, how it ended and why, and whether another attempt can mend that."""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from mobileclip import storage
from mobileclip.errors import MobileClipError
from mobileclip.kubeflow import journal
from pipelines.api import Api, AwayError, Json, LoginError, ask

logger = logging.getLogger(__name__)

EXIT = {"succeeded": 0, "failed": 1, "canceled": 4, "taken over": 4}
"""Exit codes by outcome; 5 = still running after `--timeout`, 6 = the server is away or wants another login."""

_ENDS = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_PATIENCE = 600.0  # for which the API may be away while a run goes on [s]


class StillRunningError(MobileClipError):
    """The time to wait is over, the run goes on (exit code 5)."""

    exit_code = 5


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        outcome: `succeeded`, `failed`, `canceled` or `taken over`.
        report: What the exit handler left (`mobileclip.kubeflow.journal`); empty where it cannot be read from here.
    """

    outcome: str
    report: dict[str, Any]

    @property
    def may_pass(self) -> bool:
        """Whether another attempt can mend it: not bad input, and nobody's decision."""
        return self.outcome == "failed" and not journal.has_bad_input(self.report)


def wait(api: Api, run: Json, *, root: str, poll: float, timeout: float = 0.0) -> End:
    """Wait for the end of a run and say what it does.

    Args:
        api: The server; while it is away the run is looked at again.
        run: The run.
        root: Where it works; its notes are read where this machine sees them.
        poll: Time between two looks [s].
        timeout: Longest wait [s]; 0 = none.

    Raises:
        StillRunningError: The time is over.
        AwayError: The server is away, or the login has expired.
    """
    patient, begin, before = Api(api.host, api.namespace, api.session, _PATIENCE), time.monotonic(), ""
    while True:
        found = _look(patient, run)
        if str(found.get("state", "")).upper() in _ENDS:
            return _end(found, root)
        elapsed = time.monotonic() - begin
        if timeout and elapsed >= timeout:
            raise StillRunningError(f"run: {run['run_id']} still runs after {timeout:.0f} s, and goes on.")
        said = _progress(found, root)
        if said != before:
            print(f"{elapsed / 60:5.0f} min  {said}", flush=True)
            before = said
        time.sleep(poll)


def _look(api: Api, run: Json) -> Json:
    try:
        return ask(api, "GET", f"/runs/{run['run_id']}")
    except LoginError as error:
        raise AwayError(f"{error} The run {run['run_id']} goes on.") from None
    except AwayError as error:
        raise AwayError(f"{error} no answer for {_PATIENCE:.0f} s. The run {run['run_id']} goes on.") from None


def _end(run: Json, root: str) -> End:
    report = read_report(root, run["run_id"])
    outcome = {"SUCCEEDED": "succeeded", "SKIPPED": "succeeded"}.get(str(run["state"]).upper(), "failed")
    # The server ends a cancelled run as FAILED: only what went before tells.
    states = {str(row.get("state", "")).upper() for row in run.get("state_history") or []}
    if outcome == "failed" and ({"CANCELING", "CANCELED"} & (states | {str(run["state"]).upper()})):
        outcome = "canceled"
    elif outcome == "failed" and report.get("outcome") == "taken over":
        outcome = "taken over"
    return End(outcome, report)


def _progress(run: Json, root: str) -> str:
    """State, and the stages that are at work, as far as they can be seen from here."""
    state = str(run.get("state", "pending")).lower()
    if not storage.is_s3(root):
        return state
    try:
        return f"{state}: {journal.progress(journal.read(root, run['run_id']))}".rstrip(": ")
    except MobileClipError as error:
        logger.debug("the notes of the run cannot be read from here: %s", error)
        return state


def read_report(root: str, run_id: str) -> dict[str, Any]:
    """What the exit handler left below the root; empty where that cannot be read from this machine."""
    if not storage.is_s3(root):
        return {}
    try:
        return dict(json.loads(storage.read_bytes(journal.report_path(root, run_id))))
    except (MobileClipError, ValueError) as error:
        logger.debug("the report of the run cannot be read from here: %s", error)
        return {}
