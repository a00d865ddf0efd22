"""Exporters that talk too much."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def no_logging() -> Iterator[None]:
    """Without log lines up to warnings: exporters write notes on each graph pass at every level below."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
