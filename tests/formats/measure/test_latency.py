"""Turns are interleaved, and what a program costs in a process of its own is measured."""

import time

import numpy as np
import pytest

from mobileclip.errors import ExportError
from mobileclip.formats.measure import latency
from mobileclip.formats.program_ports import Port
from mobileclip.formats.runtime import Encoder


def test_turns_alternate_and_are_timed():
    order = []

    def turn(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    times = latency.interleave({"slow": turn("slow", 0.02), "fast": turn("fast", 0.001)}, 4)
    assert order == ["slow", "fast"] * (latency.WARM_UP + 4)
    assert {name: len(values) for name, values in times.items()} == {"slow": 4, "fast": 4}
    assert np.median(times["slow"]) >= 20
    assert np.median(times["fast"]) < np.median(times["slow"])


def test_no_round_starts_after_the_deadline():
    times = latency.interleave({"a": lambda: time.sleep(0.01)}, 1000, seconds=0.1)
    assert 1 <= len(times["a"]) < 30


def test_fixed_batches_are_filled(tmp_path):
    seen = []

    def execute(rows):
        seen.append(rows.shape)
        return rows

    encoder = Encoder(tmp_path, Port("text", "int32", (4, 3)), Port("text_features", "float32", (4, 3)), execute)
    for rows in (1, 4):
        latency.turn(encoder, np.zeros((rows, 3), np.int32))()
    assert seen == [(4, 3), (4, 3)]


def test_load_time_and_memory_of_a_program(written, folder):
    found = latency.resources(folder / "text.float32.onnx")
    assert found["load_ms"] > 0
    # The weights must be in memory; a runtime may hold them twice, and some work space.
    size = written["text.float32.onnx"].bytes / 2**20
    assert 0.5 * size < found["peak_mb"] < 10 * size + 60


def test_program_that_does_not_load(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"junk")
    with pytest.raises(ExportError, match=r"x\.onnx: does not run in a process of its own"):
        latency.resources(tmp_path / "x.onnx")
