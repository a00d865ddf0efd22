"""Progress and timings: what is said while a run goes on, and what is left of it afterwards."""

import json
import logging
import re

from mobileclip.data.progress import Work, watched, write_timings
from mobileclip.manifest import Shard


def _shards(*samples: int) -> list[Shard]:
    return [
        Shard(name=f"s{i}", split="train", path="x", samples=n, bytes=1, sha256="0", uids_sha256="0")
        for i, n in enumerate(samples)
    ]


def test_every_shard_is_reported_with_speed_and_time_left(caplog):
    shards = _shards(10, 30)
    with caplog.at_level(logging.INFO, logger="mobileclip.data.progress"):
        assert list(watched(shards, "reinforce")) == shards
    lines = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"[\d.]+ a second, [\d:]+ left", "SPEED", line) for line in lines] == [
        "reinforce: s0, 10 of 40 samples, SPEED",
        "reinforce: s1, 40 of 40 samples, SPEED",
    ]
    assert lines[1].endswith("00:00 left")


def test_timings_of_a_run_and_of_one_group_of_several(tmp_path):
    work = Work(4.0, {"s1": 3.0, "s0": 1.23456}, 40)
    write_timings(str(tmp_path), work, views=80)
    assert json.loads((tmp_path / "timings.json").read_text()) == {
        "seconds": 4.0, "samples": 40, "samples_per_second": 10.0, "shards": {"s0": 1.235, "s1": 3.0}, "views": 80,
    }  # fmt: skip
    write_timings(str(tmp_path), work, group=3, num_groups=5)
    assert json.loads((tmp_path / "timings-00003.json").read_text())["samples_per_second"] == 10
    write_timings(str(tmp_path), Work(0.1, {}, 0))
    assert json.loads((tmp_path / "timings.json").read_text())["samples"] == 40  # nothing done, nothing said
