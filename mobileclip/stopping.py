"""SIGTERM and Ctrl-C end a run in order and in time: with all its processes, what is committed stays.

A pod that is evicted gets SIGTERM and, some seconds later, SIGKILL. Between them the running stage unwinds: workers
end, the MLflow run is marked KILLED. Should it be stuck, in a library that does not return or in a request that nobody
answers, a watchdog ends it after `GRACE_SECONDS`.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

GRACE_SECONDS = 6.0
"""How long the work may take to unwind."""
_LAST_WORDS_SECONDS = 2.0
_PROGRAM_SECONDS = 5.0

_last_words: list[Callable[[], object]] = []
_RESEND_SECONDS = 0.5
_active = False
_holds = 0
_stopping, _obeyed = threading.Event(), threading.Event()


class Terminated(SystemExit):
    """SIGTERM arrived."""


@contextlib.contextmanager
def terminable(*, interrupts: bool = False, pass_on: bool = False) -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in here, and end the process for sure if it is still there `GRACE_SECONDS` later.

    An exception out of a signal handler is lost where it hits a finalizer or a callback from C, so it comes again until
    it is `obeyed`; signals after that change nothing. Within another `terminable`, and outside of the main thread,
    where Python runs no signal handlers, it does nothing.

    Args:
        interrupts: Watch over SIGINT (Ctrl-C), too, which raises KeyboardInterrupt as ever: for programs, not for
            notebooks, whose process goes on.
        pass_on: Send SIGTERM to all child processes, for callers that wait for them whatever happens.
    """
    global _active  # noqa: PLW0603 - signal handlers are the process's, too
    if _active or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(number: int, _frame: Any) -> None:
        if os.getpid() != owner:  # a fork that has not set its own handler yet
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if _obeyed.is_set():
            return
        if not _stopping.is_set():
            _stopping.set()
            threading.Thread(target=_enforce, args=(number,), daemon=True, name="watchdog").start()
            if pass_on:
                _end_children(signal.SIGTERM)
        if _holds:  # it comes again
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)

    numbers = (signal.SIGTERM, signal.SIGINT) if interrupts else (signal.SIGTERM,)
    before = {number: signal.signal(number, stop) for number in numbers}
    _active = True
    try:
        yield
    finally:
        _active = False
        obeyed()
        for number, handler in before.items():
            # A process that was told to end must not be killed in its last steps by the signal's second copy.
            signal.signal(number, signal.SIG_IGN if _stopping.is_set() else handler)


def obeyed() -> None:
    """Say that the signal's exception has arrived, before a cleanup that the next one must not interrupt."""
    if _stopping.is_set():
        _obeyed.set()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no exception of a signal break in here: a fork that is cut short leaves locks held for ever."""
    global _holds  # noqa: PLW0603 - see above
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1


@contextlib.contextmanager
def last_words(action: Callable[[], object]) -> Iterator[None]:
    """Have the watchdog do this, within seconds, before it ends a process that is stuck in here."""
    _last_words.append(action)
    try:
        yield
    finally:
        _last_words.remove(action)


def become_worker() -> None:
    """In a child process: take no part in its parent's signals, and end with the parent however that one ends.

    The terminal sends Ctrl-C to all processes, but the parent alone decides; a parent that is killed decides nothing.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True, name="end-with-parent").start()


def run_program(command: Sequence[str]) -> int:
    """Run a program that has processes of its own; its exit code. Where we are told to end, it is told so, too."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_PROGRAM_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _end_with(parent: Any) -> NoReturn:
    parent.join()
    os._exit(1)


def _enforce(number: int) -> NoReturn:
    end = time.monotonic() + GRACE_SECONDS
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _RESEND_SECONDS))
        if not _obeyed.is_set():
            os.kill(os.getpid(), number)
    speakers = [threading.Thread(target=words, daemon=True) for words in list(_last_words)]
    for speaker in speakers:
        speaker.start()
    end = time.monotonic() + _LAST_WORDS_SECONDS
    for speaker in speakers:
        speaker.join(max(0.0, end - time.monotonic()))
    _end_children(signal.SIGKILL)
    os._exit(128 + number)


def _end_children(number: signal.Signals) -> None:
    for pid in _children():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _children() -> list[int]:
    """Process ids of all children, whoever started them."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # no Linux
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        pairs = (line.split() for line in listed.splitlines())
        return [int(pid) for pid, parent in pairs if int(parent) == os.getpid()]
    found: list[int] = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found
