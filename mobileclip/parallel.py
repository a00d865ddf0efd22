"""Work on several cores: one torch thread per process, and as many processes as there are cores.

Results must not depend on the machine. A reduction split over threads rounds differently, so each process computes with
one thread; whole units of work (a shard, a model) run side by side instead. `MOBILECLIP_PROCESSES` bounds their number.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from mobileclip.errors import MobileClipError

Task = tuple[Callable[..., Any], tuple[Any, ...]]


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
    with context.Pool(count, initializer=one_thread) as pool:
        pending = [pool.apply_async(_guard, task) for task in tasks]
        return [_unwrap(handle.get()) for handle in pending]


def run_forked(function: Callable[[int, int], None], units: int) -> None:
    """Call `function(part, parts)` in as many forked processes as are worth it for inference over `units`.

    Fork shares loaded models without copying them; it is safe because torch runs one thread and no backward pass.

    Raises:
        MobileClipError: A process failed; the sentence is its own.
    """
    parts = process_count(units)
    if parts == 1:
        function(0, 1)
        return
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()

    def body(part: int) -> None:
        queue.put(_guard(function, (part, parts)))

    processes = [context.Process(target=body, args=(part,)) for part in range(parts)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    results = [queue.get() for _ in range(parts) if not queue.empty()]
    for result in results:
        _unwrap(result)
    if len(results) < parts:
        codes = [process.exitcode for process in processes]
        raise MobileClipError(f"parallel: a worker process died (exit codes {codes}).")


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
