"""Exporters that talk too much."""

import contextlib
import io
import logging
import warnings
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


@contextlib.contextmanager
def no_notes() -> Iterator[None]:
    """Without log lines, warnings on versions and progress bars, of which coremltools has all three."""
    with no_logging(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
