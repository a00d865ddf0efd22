"""What a job's pods say: the first node's log as it grows, why pods wait, and the last words of one that failed.

Works on pods as the Kubernetes client gives them, and on a function that reads a log, so that nothing here imports it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

ReadLog = Callable[..., list[str]]
"""`read(pod, **options)` with the options of Kubernetes' `pods/log`; lines, empty where there is no log."""

_FIRST_LINES, _LAST_LINES = 200, 20  # of a log that is met, and of one that has ended


@dataclass
class Tail:
    """How far the first node's log has been shown.

    Attributes:
        first: Label and value that tell the first node's pod.
        pod: Pod that is followed.
        last: Time stamp of the last line shown.
        at: When that was, by this machine's clock [s].
        said: What was last said about pods that wait.
    """

    first: tuple[str, str]
    pod: str = ""
    last: str = ""
    at: float = 0.0
    said: dict[str, str] = field(default_factory=dict)

    def show(self, pods: Sequence[Any], read: ReadLog) -> None:
        """Log what is new."""
        label, value = self.first
        for pod in pods:
            self._say_why_it_waits(pod)
            if (pod.metadata.labels or {}).get(label) == value and pod.status.phase != "Pending":
                self._show_new_lines(pod.metadata.name, read)

    def _show_new_lines(self, pod: str, read: ReadLog) -> None:
        if pod != self.pod:
            self.pod, self.last, self.at = pod, "", 0.0
        now = time.monotonic()
        window = {"since_seconds": int(now - self.at) + 10} if self.last else {"tail_lines": _FIRST_LINES}
        rows = [line.partition(" ") for line in read(pod, timestamps=True, **window)]
        fresh = [(stamp, text) for stamp, _, text in rows if stamp > self.last]
        for stamp, text in fresh:
            logger.info("[%s] %s", pod, text)
            self.last = max(self.last, stamp)
        self.at = now

    def _say_why_it_waits(self, pod: Any) -> None:
        states = [s.state.waiting for s in pod.status.container_statuses or [] if s.state and s.state.waiting]
        reasons = [f"{w.reason}: {w.message or ''}".strip(": ") for w in states if w.reason != "ContainerCreating"]
        conditions = pod.status.conditions or []
        reasons += [f"{c.reason}: {c.message}" for c in conditions if c.type == "PodScheduled" and c.status == "False"]
        said = "; ".join(reasons)
        if said and self.said.get(pod.metadata.name) != said:
            logger.warning("[%s] waits: %s", pod.metadata.name, said)
        self.said[pod.metadata.name] = said


def last_words(pods: Sequence[Any], read: ReadLog) -> str:
    """The exit code and the end of the log of the pod that failed first; the others mostly fail of its silence."""
    failed = []
    for pod in pods:
        for status in pod.status.container_statuses or []:
            ended = (status.state and status.state.terminated) or (status.last_state and status.last_state.terminated)
            if ended and ended.exit_code:
                failed.append((str(ended.finished_at or ""), pod.metadata.name, ended))
    if not failed:
        return "None of its pods has an exit code."
    _, name, ended = min(failed, key=lambda row: row[:2])
    lines = read(name, tail_lines=_LAST_LINES) or ["(its log is gone)"]
    words = "\n".join(f"  {line}" for line in lines)
    code = f"exit code {ended.exit_code} ({ended.reason or 'no reason'})"
    return f"Pod '{name}' ended with {code}; its last lines:\n{words}"
