"""Bounded retries with jitter: what a store refuses for a moment is asked again, what it refuses for good is said once.

Set by the environment, because they belong to the machine and not to the run: `MOBILECLIP_STORAGE_TRIES` (default 10),
`MOBILECLIP_STORAGE_WAIT` (seconds before the second try, default 0.5; doubled each time up to 30).
"""

import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from mobileclip.errors import StorageError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LONGEST_WAIT = 30.0
_WAY_OUT = "what is committed stays, a new run goes on from there"
# Not `random`'s own generator: runs seed it, and forked workers would inherit its state and knock in step.
_JITTER = random.SystemRandom()


def tries() -> int:
    """How often one request is sent at most."""
    return max(1, int(os.environ.get("MOBILECLIP_STORAGE_TRIES", "10")))


def retried(work: Callable[[int], T], *, what: str, transient: Callable[[Exception], str]) -> T:
    """Call `work(attempt)` until it succeeds, at most `tries()` times.

    Waits double and are drawn evenly from the upper half of their range ("equal jitter"), so that workers that failed
    together do not come back together.

    Args:
        work: Gets the number of the attempt, from 0.
        what: Verb and object for the sentence: `reading 's3://...'`.
        transient: The reason, where an error may pass; empty for an error that will not, which is raised as it is. An
            attribute `way_out` of the error tells what to do where it stays.

    Raises:
        StorageError: The last try failed, too.
    """
    first, limit = float(os.environ.get("MOBILECLIP_STORAGE_WAIT", "0.5")), tries()
    for attempt in range(limit):
        try:
            return work(attempt)
        except Exception as error:
            reason = transient(error)
            if not reason:
                raise
            if attempt + 1 == limit:
                raise StorageError(
                    f"storage: {what} failed {limit} times, at last with {reason}; "
                    f"{getattr(error, 'way_out', _WAY_OUT)}."
                ) from None
        wait = min(_LONGEST_WAIT, first * 2**attempt) * _JITTER.uniform(0.5, 1)
        logger.warning("storage: %s: %s, try %d of %d in %.1f s", what, reason, attempt + 2, limit, wait)
        time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")
