"""What a stage tells the outside while it runs: a small protocol, so that stages know nothing of MLflow."""

import json
import logging
from collections.abc import Mapping
from typing import Protocol

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where metrics and files of a running stage go."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record numbers at a step."""

    def log_file(self, path: str, *, folder: str = "") -> None:
        """Record a local file (figure, report, table)."""


class LogTracker:
    """A tracker that writes to the log alone: the default without MLflow and in tests."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Write one JSON line, at level DEBUG: the stages log what to watch, and leave `metrics.json`."""
        logger.debug("step %d %s", step, json.dumps({k: round(v, 5) for k, v in metrics.items()}))

    def log_file(self, path: str, *, folder: str = "") -> None:
        """Name the file."""
        logger.debug("wrote %s %s", folder, path)
