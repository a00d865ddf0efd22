"""Work on several processes and threads: results in order, bounded look-ahead, sentences across processes."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from tqdm import tqdm

from mobileclip.errors import DataError, MobileClipError
from mobileclip.parallel import ahead, run_forked


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_keeps_the_order_whatever_the_workers(workers):
    def work(index: int) -> int:
        time.sleep(0.001 * (index % 3))
        return index * index

    assert list(ahead(work, range(20), workers=workers)) == [index * index for index in range(20)]
    assert list(ahead(work, [], workers=workers)) == []


def test_ahead_works_while_the_caller_does_and_not_further_than_it_may():
    started: list[int] = []
    results = ahead(lambda index: started.append(index) or threading.get_ident(), range(100), workers=2)
    assert next(results) != threading.get_ident()
    until = time.monotonic() + 60
    while len(started) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert 1 < len(started) <= 5
    results.close()
    time.sleep(0.05)
    assert len(started) <= 5


def test_ahead_raises_what_the_work_raised_at_its_place():
    def work(index: int) -> int:
        if index == 3:
            raise DataError("data: the fourth is bad.")
        return index

    results = ahead(work, range(10), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="the fourth is bad"):
        next(results)


def test_forked_parts_return_in_order(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "3")
    big = "x" * 300_000  # more than a pipe holds: a parent that only waits for the end would wait forever
    results = run_forked(lambda part, parts: (part, parts, os.getpid(), big), 7)
    assert [(part, parts) for part, parts, _, _ in results] == [(0, 3), (1, 3), (2, 3)]
    assert len({pid for _, _, pid, _ in results}) == 3
    assert all(text == big for *_, text in results)


def test_a_fork_sets_its_threads_before_it_computes(monkeypatch):
    """Torch drops the pool that a fork inherits at its first use; several threads that do so at once crash."""
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "2")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert run_forked(lambda _part, _parts: torch.get_num_threads(), 2) == [1, 1]
    finally:
        torch.set_num_threads(before)


def test_a_fork_hears_no_signals_of_its_parent(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "2")
    asked = [signal.SIGINT, signal.SIGTERM]
    assert (
        run_forked(lambda _part, _parts: [signal.getsignal(number) for number in asked], 2)
        == [[signal.SIG_IGN, signal.SIG_DFL]] * 2
    )


def test_no_process_is_left_where_the_caller_is_interrupted(monkeypatch):
    """The parent's own exception (a signal's, say) while it waits for its workers."""
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "2")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_forked(lambda part, _: os.kill(os.getppid(), signal.SIGUSR1) if part else time.sleep(1000), 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert multiprocessing.active_children() == []


def test_a_forked_error_is_its_own_sentence_and_a_death_is_named(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "2")

    def bad(part: int, _parts: int) -> None:
        if part == 1:
            raise DataError("data: part 1 is bad.")

    with pytest.raises(DataError, match=r"^data: part 1 is bad\.$"):
        run_forked(bad, 2)

    def dies(part: int, _parts: int) -> None:
        if part == 0:
            os._exit(9)

    with pytest.raises(MobileClipError, match=r"^parallel: a worker process died \(exit codes \[9, 0\]\)\.$"):
        run_forked(dies, 2)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_forked(lambda part, _: 1 // part, 2)


def test_a_worker_killed_at_its_progress_bar_holds_up_no_other():
    """tqdm's own lock is a semaphore that forks share, and nobody gives back what a killed process held."""

    def dies() -> None:
        with tqdm.get_lock():
            os.kill(os.getpid(), signal.SIGKILL)

    worker = multiprocessing.get_context("fork").Process(target=dies)
    with tqdm.get_lock():  # nor does a fork wait for what its parent held
        worker.start()
        worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert tqdm.get_lock().acquire(timeout=10)
    tqdm.get_lock().release()
