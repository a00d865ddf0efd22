"""The registry's operations under writers that cross each other, on a real MLflow server."""

import threading
from concurrent.futures import ThreadPoolExecutor

from mobileclip.promotion import registry
from tests import mlflow_server

_WRITERS = 8


def test_writers_of_the_same_new_tag_all_succeed(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    where = registry.connect("crossed")
    where.ensure()
    number = where.create("s3://models/crossed", {"evidence": "x"})
    together = threading.Barrier(_WRITERS)

    def write(writer):
        for turn in range(12):
            together.wait(60)
            where.tag(number, {f"gate.{turn}": f"by {writer}"})

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(write, range(_WRITERS)))
    tags = where.version(number).tags
    assert {f"gate.{turn}" for turn in range(12)} <= set(tags)
