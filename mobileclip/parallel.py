"""Work on several cores: one torch thread per process, and as many processes as there are cores.

Results must not depend on the machine. A reduction split over threads rounds differently, so each process computes with
one thread; whole units of work (a shard, a model) run side by side instead. `MOBILECLIP_PROCESSES` bounds their number.
"""

import itertools
import multiprocessing
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from mobileclip.errors import MobileClipError
from mobileclip.stopping import become_worker, undisturbed

T = TypeVar("T")
R = TypeVar("R")
Task = tuple[Callable[..., Any], tuple[Any, ...]]


def _own_bar_lock() -> None:
    """Let tqdm's lock be this process's alone.

    Its own is a semaphore that forks share: a worker that is killed while it draws its bar would take it along, and
    every other process would wait for it forever.
    """
    tqdm.set_lock(threading.RLock())


_own_bar_lock()
os.register_at_fork(after_in_child=_own_bar_lock)


def rank() -> int:
    """Which of the processes that `torchrun` started this is, from 0; 0 without it."""
    return int(os.environ.get("RANK", "0") or 0)


def world_size() -> int:
    """Processes that `torchrun` started for this work; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def process_count(units: int) -> int:
    """How many processes to use for that many units of work."""
    limit = int(os.environ.get("MOBILECLIP_PROCESSES", os.cpu_count() or 1))
    return max(1, min(units, limit, 64))


def one_thread() -> None:
    """Make torch compute with one thread; `MOBILECLIP_THREADS` overrides where bits may differ."""
    import torch

    torch.set_num_threads(int(os.environ.get("MOBILECLIP_THREADS", "1")))


def run_all(tasks: Sequence[Task]) -> list[Any]:
    """Run independent functions, each in a fresh process where more than one core may be used.

    Args:
        tasks: (function, arguments): both picklable, the function importable.

    Returns:
        Results in the order of the tasks.

    Raises:
        MobileClipError: What the first failing task raised.
    """
    count = process_count(len(tasks))
    if count == 1:
        return [function(*arguments) for function, arguments in tasks]
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, initializer=_start_pool_worker) as pool:
        pending = [pool.apply_async(_guard, task) for task in tasks]
        return [_unwrap(handle.get()) for handle in pending]


def run_forked(function: Callable[[int, int], T], units: int) -> list[T]:
    """Call `function(part, parts)` in as many forked processes as are worth it for inference over `units`.

    Fork shares loaded models without copying them; it is safe because torch runs one thread and no backward pass. With
    a GPU there is one process: a device is not shared by forks, and threads prepare its input. However the call ends,
    the processes end with it.

    Returns:
        What the parts returned, in order.

    Raises:
        MobileClipError: A process failed; the sentence is its own.
    """
    parts = 1 if _has_gpu() else process_count(units)
    if parts == 1:
        return [function(0, 1)]
    context = multiprocessing.get_context("fork")
    processes: list[Any] = []
    answers: list[Any] = []
    try:
        for part in range(parts):
            answer, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(theirs, function, part, parts))
            with undisturbed():
                process.start()
            theirs.close()  # else a dead worker's pipe stays open here, or in the next fork, and nobody sees its end
            processes.append(process)
            answers.append(answer)
        results = [_receive(answer) for answer in answers]
        for process in processes:
            process.join()
    finally:
        _end(processes)
    if None in results:
        failed = [result for result in results if result is not None and result[0] != "done"]
        for result in failed:
            _unwrap(result)
        codes = [process.exitcode for process in processes]
        raise MobileClipError(f"parallel: a worker process died (exit codes {codes}).")
    return [_unwrap(result) for result in results if result is not None]


def ahead(function: Callable[[T], R], items: Iterable[T], *, workers: int) -> Iterator[R]:
    """`function` of every item, in order; threads work on the next ones while the caller is busy with one.

    Meant for work that lets go of the interpreter's lock (decoding, resizing, reading). At most 2 * `workers` results
    wait, so memory is bounded; the number of workers changes nothing but the time.

    Args:
        function: Called on a thread, or here where `workers` is 0.
        items: Its arguments.
        workers: Threads.
    """
    if workers == 0:
        yield from map(function, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(source, 2 * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(source, 1))
                yield result
        finally:
            for left in waiting:
                left.cancel()


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _end(processes: Sequence[Any]) -> None:
    """Stop what still runs. Results are committed whole, so a worker may be killed at any moment."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _start_worker() -> None:
    """What a new process does before anything else.

    Torch drops the thread pool that a fork inherits at its next use, and not under a lock: of several threads that come
    first at once, one finds none and crashes ("Invalid thread pool"). Setting the number of threads is that first use.
    """
    if "torch" in sys.modules:
        one_thread()
    become_worker()


def _start_pool_worker() -> None:
    one_thread()
    become_worker()


def _answer(pipe: Any, function: Callable[[int, int], Any], part: int, parts: int) -> None:
    _start_worker()
    pipe.send(_guard(function, (part, parts)))


def _receive(pipe: Any) -> tuple[str, Any] | None:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _guard(function: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> tuple[str, Any]:
    try:
        return "done", function(*arguments)
    except MobileClipError as error:
        return "error", error
    except Exception:  # noqa: BLE001 - carried to the parent with its trace
        return "crash", traceback.format_exc()


def _unwrap(result: tuple[str, Any]) -> Any:
    kind, value = result
    if kind == "done":
        return value
    if kind == "error":
        raise value
    raise RuntimeError(f"a worker process failed:\n{value}")
