"""Points of accuracy over latency, through the tags of registered versions."""

import pytest

from mobileclip.promotion.candidates import fastest_ms, latest, score_tags
from mobileclip.promotion.gates import Evidence
from mobileclip.promotion.registry import Version

TIMINGS = {
    "image": {"threads_1": {"eager": {"p50_ms": 9.0}, "a.onnx": {"p50_ms": 2.0}, "b.onnx": {"p50_ms": 1.5}}},
    "text": {
        "threads_1": {"eager": {"p50_ms": 0.1}, "t.onnx": {"p50_ms": 0.5}},
        "threads_2": {"t.onnx": {"p50_ms": 0.1}},
    },
}  # fmt: skip
METRIC = "retrieval/mean/r10"


def evidence(score):
    numbers = {"": score, "/low": score - 0.1, "/high": score + 0.1}
    return Evidence({f"student/{METRIC}{k}": v for k, v in numbers.items()}, results={"headline": METRIC})


def test_the_fastest_programs_of_both_towers_count_and_pytorch_does_not():
    assert fastest_ms(TIMINGS) == pytest.approx(2.0)
    assert fastest_ms({**TIMINGS, "text": {"threads_1": {"eager": {"p50_ms": 1.0}}}}) == 0.0
    assert fastest_ms({}) == 0.0


def test_tags_bring_a_version_back_as_a_point():
    versions = [Version(n, "", "", score_tags(evidence(s), TIMINGS)) for n, s in ((1, 0.4), (2, 0.5), (3, 0.6))]
    found = latest(versions, metric=METRIC, own=3, champion=2)
    assert [(c.version, c.kind, c.label) for c in found] == [
        (1, "other", "v1"),
        (2, "champion", "v2"),
        (3, "student", "v3"),
    ]
    assert (found[2].score, found[2].low, found[2].high) == pytest.approx((0.6, 0.5, 0.7))
    assert found[0].latency_ms == pytest.approx(2.0)


def test_a_champion_that_is_measured_again_is_this_student():
    versions = [Version(1, "", "", score_tags(evidence(0.4), TIMINGS))]
    assert [c.kind for c in latest(versions, metric=METRIC, own=1, champion=1)] == ["student"]


def test_versions_with_another_metric_or_without_latency_are_left_out():
    tags = score_tags(evidence(0.4), TIMINGS)
    versions = [
        Version(1, "", "", {**tags, "score.metric": "zero_shot/group/top1"}),
        Version(2, "", "", score_tags(evidence(0.4), {})),
        Version(3, "", "", {}),
    ]
    assert latest(versions, metric=METRIC, own=9, champion=1) == []
    assert score_tags(Evidence({}, results={"headline": METRIC}), TIMINGS) == {}


def test_a_version_stands_once_more_for_each_device_it_was_measured_on():
    phones = {"latency.device/Pixel 9": "5.500", "latency.device/iPhone 17": "3.250"}
    tags = {**score_tags(evidence(0.4), TIMINGS), **phones}
    found = latest([Version(4, "", "", tags)], metric=METRIC, own=9, champion=4)
    assert [(c.label, c.device, c.latency_ms, c.kind) for c in found] == [
        ("v4", "", 2.0, "champion"), ("v4, Pixel 9", "Pixel 9", 5.5, "champion"),
        ("v4, iPhone 17", "iPhone 17", 3.25, "champion"),
    ]  # fmt: skip
