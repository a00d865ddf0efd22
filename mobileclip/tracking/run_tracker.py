"""The tracker of one MLflow run: a thread sends what it is told, so that no server holds or shortens the work."""

import contextlib
import hashlib
import logging
import posixpath
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mobileclip import stopping
from mobileclip.errors import MobileClipError
from mobileclip.stopping import Terminated
from mobileclip.tracking.protocol import LogTracker

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 10.0
_FLUSH_METRICS = 500
_MAX_BUFFER = 100_000  # metrics kept while the server is away
_MAX_FILES = 1000
_MAX_BATCH = 1000  # MLflow's own limit of metrics per request
_MAX_NAME = 250  # MLflow's own limit of characters
# How long the end of a run may wait for what is not sent yet, and for the answer to its last request. A killed run
# has less: a pod's grace period runs.
END_SECONDS = {"FINISHED": (20.0, 10.0), "FAILED": (20.0, 10.0), "KILLED": (2.0, 2.0)}
_REFUSED = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})


class RunTracker:
    """A tracker that writes to one MLflow run.

    Attributes:
        run_id: The run.
        warned: Whether it was said that the server does not answer.
    """

    def __init__(self, client: Any, run_id: str, *, metric: Callable[[str, float, int, int], Any]) -> None:
        """Args: an `MlflowClient`, the run, and MLflow's `Metric` (name, value, time in ms, step)."""
        self.run_id = run_id
        self.warned = False
        self._client = client
        self._metric = metric
        self._log = LogTracker()
        self._metrics: list[Any] = []
        self._files: list[tuple[str, str]] = []
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self._next_flush = time.monotonic() + _FLUSH_SECONDS
        self._failures = 0
        self._copies = tempfile.TemporaryDirectory(prefix="mobileclip-tracking-", ignore_cleanup_errors=True)
        self._asked: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record numbers at a step; they reach the server within seconds, at the latest when the stage ends."""
        self._log.log_metrics(metrics, step=step)
        now = int(time.time() * 1000)
        with self._lock:
            named = ((metric_name(k), v) for k, v in metrics.items())
            self._metrics += [self._metric(k, float(v), now, step) for k, v in named if k not in self._refused]
            del self._metrics[:-_MAX_BUFFER]
            many = not self._failures and len(self._metrics) >= _FLUSH_METRICS
            due = many or time.monotonic() >= self._next_flush
        if due:
            self._ask()

    def log_file(self, path: str, *, folder: str = "") -> None:
        """Record a local file, as it is now, as an artifact of the run."""
        self._log.log_file(path, folder=folder)
        with self._lock:
            self._files.append((self._copy(path), folder))
            del self._files[:-_MAX_FILES]
        if not self._failures:
            self._ask()

    def close(self, seconds: float) -> bool:
        """`flush` for the last time."""
        whole = self.flush(seconds)
        if whole:  # else the sender may still be at one of them
            self._copies.cleanup()
        return whole

    def flush(self, seconds: float = END_SECONDS["FINISHED"][0]) -> bool:
        """Send what is buffered, within so many seconds; returns whether all of it arrived."""
        answered = self._ask(force=True)
        return answered.wait(seconds) and not (self._failures or self._metrics or self._files)

    def _copy(self, path: str) -> str:
        """The file may be gone or be another one when its turn comes."""
        try:
            folder = tempfile.mkdtemp(dir=self._copies.name)
            return shutil.copy(path, folder)
        except OSError:  # the disk is full: the file itself may well stay where it is
            return path

    def _ask(self, *, force: bool = False) -> threading.Event:
        """Have the sender send what there is; the event tells that it has tried."""
        answered = threading.Event()
        with self._lock:
            if not force and not self._asked.empty():
                return answered  # it is busy, and will find what is new when it comes to the request before this one
            self._next_flush = time.monotonic() + _FLUSH_SECONDS * 2 ** min(self._failures, 3)
            if self._sender is None:
                self._sender = threading.Thread(target=self._serve, daemon=True, name="tracking")
                self._sender.start()
        self._asked.put(answered)
        return answered

    def _serve(self) -> None:
        while True:
            answered = self._asked.get()
            try:
                self._send()
            except Exception as error:  # noqa: BLE001 - whatever network or store throw, training goes on
                self._failures += 1
                if not self.warned:
                    self.warned = True
                    logger.warning(
                        "tracking: MLflow does not answer (%s); the work goes on, run %s gets the rest when it does.",
                        first_line(error), self.run_id,
                    )  # fmt: skip
            else:
                self._failures = 0
            answered.set()

    def _send(self) -> None:
        while batch := self._metrics[:_MAX_BATCH]:
            self._send_metrics(batch)
            with self._lock:
                sent = {id(metric) for metric in batch}  # the oldest may have been dropped meanwhile
                self._metrics = [metric for metric in self._metrics if id(metric) not in sent]
        while self._files:
            path, folder = self._files[0]
            try:
                self._client.log_artifact(self.run_id, path, folder or None)
            except Exception as error:
                if not _is_refusal(error) and not isinstance(error, FileNotFoundError):
                    raise
                logger.warning("tracking: MLflow does not take the file '%s' (%s).", path, first_line(error))
            with self._lock, contextlib.suppress(ValueError):
                self._files.remove((path, folder))

    def _send_metrics(self, batch: list[Any]) -> None:
        """Send them; where the server refuses some, the others arrive and those are named, once each."""
        batch = [metric for metric in batch if metric.key not in self._refused]
        if not batch:
            return
        try:
            self._client.log_batch(self.run_id, metrics=batch, synchronous=True)
        except Exception as error:
            if not _is_refusal(error):
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                self._send_metrics(batch[:middle])
                self._send_metrics(batch[middle:])
            else:
                self._refused.add(batch[0].key)
                logger.warning("tracking: MLflow refuses the metric '%s' (%s).", batch[0].key, first_line(error))


@contextlib.contextmanager
def closing(client: Any, run_id: str, tracker: RunTracker | None = None) -> Iterator[None]:
    """End a run with the status that tells what happened: FINISHED, FAILED, or KILLED (SIGTERM, Ctrl-C)."""
    status, sentence = "FAILED", ""
    with stopping.terminable(), stopping.last_words(lambda: client.set_terminated(run_id, "KILLED")):
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            stopping.obeyed()
            status = "KILLED"
            raise
        except MobileClipError as error:
            sentence = str(error)[:500]
            raise
        finally:
            try:
                _end(client, run_id, tracker, status, sentence)
            except (KeyboardInterrupt, Terminated):  # while it waited for a slow server
                stopping.obeyed()
                _end(client, run_id, tracker, "KILLED", sentence)
                raise


def _end(client: Any, run_id: str, tracker: RunTracker | None, status: str, sentence: str) -> None:
    """Send what is left and end the run; both are tried whatever failed before, and neither waits for long."""
    for_rest, for_end = END_SECONDS[status]
    whole = tracker is None or tracker.close(for_rest)

    def end() -> None:
        if sentence:
            client.set_tag(run_id, "mobileclip.error", sentence)
        client.set_terminated(run_id, status)

    if not within(for_end, end) or not whole:
        # One warning is enough: that it does not answer may have been said.
        level = logging.INFO if tracker is not None and tracker.warned else logging.WARNING
        logger.log(level, "tracking: MLflow does not answer, run %s is incomplete there.", run_id)


def within(seconds: float, action: Callable[[], object]) -> bool:
    """Do it on a thread; whether it was done without an error in so many seconds. What takes longer is left behind."""
    done = threading.Event()

    def work() -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the stage's own result or error matters more
            logger.debug("tracking: %s", first_line(error))
        else:
            done.set()
        finally:
            ended.set()

    ended = threading.Event()
    threading.Thread(target=work, daemon=True, name="tracking-end").start()
    return ended.wait(seconds) and done.is_set()


def first_line(error: Exception) -> str:
    """First line of an error's text, without credentials of URLs."""
    lines = str(error).strip().splitlines()
    return re.sub(r"//[^/@\s]*@", "//", lines[0])[:200] if lines else type(error).__name__


def metric_name(name: str) -> str:
    """The name as it is where MLflow takes it, else a similar one that no other name becomes.

    MLflow takes at most 250 letters and digits of any script, `/ _ . - :` and spaces, and no name that a file system
    would read as another one (`""`, `a//b`, `..`, `/a`).
    """
    path = posixpath.normpath(name)
    unique = path == name and not path.startswith(("/", "..")) and path != "."
    if unique and len(name) <= _MAX_NAME and re.fullmatch(r"[/\w.\- :]+", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    similar = re.sub(r"[^/\w.\- :]", "_", name)
    parts = [part for part in similar.split("/") if part.strip(".")]
    return "/".join(parts)[: _MAX_NAME - 9].rstrip("/") + f"-{digest}"


def _is_refusal(error: Exception) -> bool:
    """Whether the server has read the request and will not take it, however often it is sent."""
    return str(getattr(error, "error_code", "")) in _REFUSED
