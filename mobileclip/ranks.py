"""Which process of `torchrun` this is. Apart from `parallel`, as the command line asks before it loads anything."""

import os


def rank() -> int:
    """Which of the processes that `torchrun` started this is, from 0; 0 without it."""
    return int(os.environ.get("RANK", "0") or 0)


def world_size() -> int:
    """Processes that `torchrun` started for this work; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)
