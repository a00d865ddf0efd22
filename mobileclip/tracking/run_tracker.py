"""The tracker of one MLflow run: batches metrics, survives a server that goes away, and ends killed runs as killed."""

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mobileclip.errors import MobileClipError
from mobileclip.tracking.protocol import LogTracker

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 10.0
_FLUSH_METRICS = 500
_MAX_BUFFER = 100_000  # metrics kept while the server is away
_MAX_BATCH = 1000  # MLflow's own limit of metrics per request


class Terminated(SystemExit):
    """SIGTERM arrived."""


class RunTracker:
    """A tracker that writes to one MLflow run.

    Attributes:
        run_id: The run.
    """

    def __init__(self, client: Any, run_id: str, *, metric: Callable[[str, float, int, int], Any]) -> None:
        """Args: an `MlflowClient`, the run, and MLflow's `Metric` (name, value, time in ms, step)."""
        self.run_id = run_id
        self._client = client
        self._metric = metric
        self._log = LogTracker()
        self._metrics: list[Any] = []
        self._files: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._next_flush = time.monotonic() + _FLUSH_SECONDS
        self._failures = 0

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record numbers at a step; they reach the server within seconds, at the latest when the stage ends."""
        self._log.log_metrics(metrics, step=step)
        now = int(time.time() * 1000)
        with self._lock:
            self._metrics += [self._metric(_metric_name(k), float(v), now, step) for k, v in metrics.items()]
            del self._metrics[:-_MAX_BUFFER]
            many = not self._failures and len(self._metrics) >= _FLUSH_METRICS
            due = many or time.monotonic() >= self._next_flush
        if due:
            self.flush()

    def log_file(self, path: str, *, folder: str = "") -> None:
        """Record a local file as an artifact of the run."""
        self._log.log_file(path, folder=folder)
        with self._lock:
            self._files.append((path, folder))
        if not self._failures:
            self.flush()

    def flush(self) -> bool:
        """Send what is buffered; returns whether all of it arrived."""
        with self._lock:
            try:
                self._send()
            except Exception as error:  # noqa: BLE001 - whatever network or store throw, training goes on
                self._failures += 1
                if self._failures == 1:
                    logger.warning("tracking: MLflow does not answer (%s), going on without it.", first_line(error))
            else:
                self._failures = 0
            self._next_flush = time.monotonic() + _FLUSH_SECONDS * 2 ** min(self._failures, 6)
            return not self._failures

    def _send(self) -> None:
        while self._metrics:
            self._client.log_batch(self.run_id, metrics=self._metrics[:_MAX_BATCH], synchronous=True)
            del self._metrics[:_MAX_BATCH]
        while self._files:
            path, folder = self._files[0]
            self._client.log_artifact(self.run_id, path, folder or None)
            del self._files[0]


@contextlib.contextmanager
def closing(client: Any, run_id: str, tracker: RunTracker | None = None) -> Iterator[None]:
    """End a run with the status that tells what happened: FINISHED, FAILED, or KILLED (SIGTERM, Ctrl-C)."""
    status = "FAILED"
    try:
        with _raise_on_sigterm():
            yield
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    except MobileClipError as error:
        sentence = str(error)[:500]
        _attempt(lambda: client.set_tag(run_id, "mobileclip.error", sentence))
        raise
    finally:
        lost = tracker is not None and not tracker.flush()
        if lost or not _attempt(lambda: client.set_terminated(run_id, status)):
            logger.warning("tracking: MLflow does not answer, run %s is incomplete there.", run_id)


def first_line(error: Exception) -> str:
    """First line of an error's text, without credentials of URLs."""
    lines = str(error).strip().splitlines()
    return re.sub(r"//[^/@\s]*@", "//", lines[0])[:200] if lines else type(error).__name__


@contextlib.contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM (a pod being evicted) into an exception, so that the run does not stay RUNNING for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(_signal: int, _frame: Any) -> None:
        if os.getpid() != owner:  # a forked data worker must die, not end our run
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _attempt(action: Callable[[], Any]) -> bool:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the stage's own result or error matters more
        logger.debug("tracking: %s", first_line(error))
        return False
    return True


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits and `/ _ . - :` and spaces in a metric's name."""
    return re.sub(r"[^/\w.\- :]", "_", name)
