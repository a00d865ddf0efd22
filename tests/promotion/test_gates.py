"""Gates as pure functions: what they demand, and what they say when it is not met."""

import math

import numpy as np
import pytest

from mobileclip.config import Gate
from mobileclip.evaluation import paired as comparison
from mobileclip.lineage.licenses import Use
from mobileclip.promotion.gates import Champion, Evidence, decide

METRIC = "student/zero_shot/color/top1"


def table(hits: list[bool]) -> list[dict]:
    """A per-sample table of a two-class task."""
    return [
        {
            "uid": f"u{index}",
            "retrieval": {"student": {"i2t": 1 if hit else 7, "t2i": [1, 9]}},
            "zero_shot": {"color": {"label": "red" if index % 2 else "blue", "student": {"rank": 1 if hit else 2}}},
        }
        for index, hit in enumerate(hits)
    ]


def evidence(share: float = 0.8, count: int = 200, **changes) -> Evidence:
    hits = [index < share * count for index in range(count)]
    values = {
        "metrics": {METRIC: share, "export/bytes": 5e6},
        "results": {"resamples": 500, "seed": 1, "scopes": []},
        "samples": table(hits),
        "contract": {"programs": [{"path": "a.onnx", "budget": 0.1, "figures": {"error": 0.01}}]},
        "students": {"student": "a", "evaluation": "a", "programs": "a"},
        "uses": [Use("data", "pictures", "CC0-1.0")],
    }
    return Evidence(**{**values, **changes})


def champion(share: float, count: int = 200) -> Champion:
    found = evidence(share, count)
    return Champion(3, found.metrics, found.samples)


def verdicts(gate: Gate, found: Evidence, against: Champion | None = None) -> dict:
    return {verdict.gate: verdict for verdict in decide(gate, found, against)}


def test_all_pass_without_a_champion():
    found = verdicts(Gate(metric=METRIC, minimum=0.5, commercial_use=True), evidence())
    assert all(verdict.passed for verdict in found.values())
    assert list(found) == [
        "same student", f"minimum {METRIC}", "champion", "export proof", "lineage", "commercial use",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "changes", "name", "says"),
    [
        ({"minimum": 0.9}, {}, f"minimum {METRIC}", "is 0.8, wanted >= 0.9"),
        ({"minimums": {"none": 0.1}}, {}, "minimum none", "no metric 'none'"),
        ({"maximums": {"export/bytes": 1e6}}, {}, "maximum export/bytes", "is 5e+06, wanted <= 1e+06"),
        ({}, {"students": {"student": "a", "evaluation": "b"}}, "same student", "another student"),
        ({}, {"contract": {}}, "export proof", "no proof"),
        (
            {},
            {"contract": {"programs": [{"path": "b", "budget": 0.1, "figures": {"error": math.nan}}]}},
            "export proof",
            "b (nan > 0.1)",
        ),
        ({}, {"problems": ["distill: x is missing"]}, "lineage", "x is missing"),
        (
            {"commercial_use": True},
            {"uses": [Use("reinforce", "t", "apple-amlr")]},
            "commercial use",
            "t (apple-amlr)",
        ),
        ({"commercial_use": True}, {"uses": []}, "commercial use", "No license"),
        ({"allowed_licenses": ["MIT"]}, {}, "licenses", "pictures (CC0-1.0)"),
        ({"beat_control": True}, {}, "control", "no control"),
    ],
)
def test_refuses_with_a_reason(gate, changes, name, says):
    found = verdicts(Gate(metric=METRIC, **gate), evidence(**changes))
    assert not found[name].passed
    assert says in found[name].reason
    assert [verdict.gate for verdict in found.values() if not verdict.passed] == [name]


class TestControl:
    @pytest.mark.parametrize(("verdict", "passed"), [("better", True), ("no evidence", False), ("worse", False)])
    def test_needs_a_better_student(self, verdict, passed):
        delta = {"value": 0.1, "low": 0.02, "high": 0.2, "verdict": verdict}
        scopes = [{"name": "", "metrics": {"zero_shot/color/top1": {"delta": delta}}}]
        found = verdicts(Gate(metric=METRIC, beat_control=True), evidence(results={"scopes": scopes}))
        assert found["control"].passed == passed


class TestChampion:
    @pytest.mark.parametrize(
        ("rule", "share", "passed"),
        [
            ("non_inferior", 0.8, True),  # the same answers on 200 samples: a loss beyond 1.9 % would have shown
            ("non_inferior", 0.79, False),  # two of 200 lost: the interval reaches beyond 2 %
            ("point", 0.79, True),
            ("point", 0.77, False),
            ("not_worse", 0.76, True),  # more is lost, but the interval does not show that it is more than 2 %
            ("not_worse", 0.70, False),
            ("ignore", 0.10, True),
        ],
    )
    def test_rules_differ_in_what_the_interval_must_show(self, rule, share, passed):
        gate = Gate(metric=METRIC, regression_rule=rule, max_regression=0.02)
        found = verdicts(gate, evidence(share), champion(0.8))
        assert ("champion" in found) == (rule != "ignore")
        assert all(verdict.passed for verdict in found.values()) == passed

    def test_says_which_version_and_how_sure(self):
        found = verdicts(Gate(metric=METRIC), evidence(0.5), champion(0.8))["champion"]
        assert found.reason == "Against version 3 on the same 200 samples (60 differ): worse."
        assert found.got.startswith("-0.3 [")

    def test_other_samples_cannot_be_compared(self):
        found = verdicts(Gate(metric=METRIC), evidence(), champion(0.8, count=100))["champion"]
        assert not found.passed
        assert "other samples" in found.reason

    def test_few_samples_show_little_however_alike_the_answers(self):
        """On 40 samples without a difference a loss of 8.8 % is possible (exact interval), so 2 % is not shown."""
        found = verdicts(Gate(metric=METRIC), evidence(0.8, 40), champion(0.8, 40))["champion"]
        assert not found.passed
        assert found.got == "+0 [+0, +0]"
        assert found.reason.endswith("These samples leave room for a loss of 0.088.")
        assert verdicts(Gate(metric=METRIC, max_regression=0.09), evidence(0.8, 40), champion(0.8, 40))[
            "champion"
        ].passed
        one = verdicts(Gate(metric=METRIC), evidence(0.795), champion(0.8))["champion"]
        assert one.got == "-0.005 [-0.015, +0]"  # too short: 1 of 200 may be 2.8 %
        assert not one.passed

    def test_of_a_slice_its_own_samples_count(self):
        name = f"slice/new/{METRIC}"
        ours = evidence(1.0, 400, metrics={name: 1.0})
        for index, row in enumerate(ours.samples):
            row["slice"] = "new" if index < 40 else "old"
        found = verdicts(Gate(metric=name), ours, Champion(1, {name: 1.0}, ours.samples))["champion"]
        assert not found.passed
        assert found.reason.endswith("leave room for a loss of 0.088.")

    def test_gains_alone_are_no_loss(self):
        assert verdicts(Gate(metric=METRIC), evidence(0.815), champion(0.8))["champion"].passed
        assert verdicts(Gate(metric=METRIC), evidence(0.9, 40), champion(0.6, 40))["champion"].passed

    def test_the_champion_itself_needs_no_samples(self):
        ours = evidence(count=3, contract={**evidence().contract, "lineage": {"student_sha256": "ab"}})
        itself = Champion(3, ours.metrics, table([True]), weights="ab")
        assert verdicts(Gate(metric=METRIC), ours, itself)["champion"].passed
        other = Champion(3, ours.metrics, ours.samples, weights="cd")
        assert not verdicts(Gate(metric=METRIC), ours, other)["champion"].passed

    def test_a_metric_of_which_less_is_better(self):
        name = "student/zero_shot/color/ece"
        sure, unsure = (evidence(0.8, 400, metrics={name: value}) for value in (0.15, 0.35))
        for found, confidence in ((sure, 0.95), (unsure, 0.45)):
            for row in found.samples:
                row["zero_shot"]["color"]["student"]["confidence"] = confidence
        gate = Gate(metric=name, max_regression=0.05)
        worse = verdicts(gate, unsure, Champion(1, sure.metrics, sure.samples))["champion"]
        better = verdicts(gate, sure, Champion(1, unsure.metrics, unsure.samples))["champion"]
        assert not worse.passed
        assert worse.reason.endswith("(400 differ): worse.")
        assert better.passed
        assert better.reason.endswith("(400 differ): better.")

    def test_a_metric_without_a_table_is_compared_as_it_is(self):
        name = "student/robustness/mean/all"
        ours = evidence(metrics={name: 0.30})
        for theirs, passed in ((0.34, True), (0.36, False)):
            gate = Gate(metric=name, max_regression=0.05)
            found = verdicts(gate, ours, Champion(1, {name: theirs}, ours.samples))["champion"]
            assert found.passed == passed
            assert "no paired interval" in found.reason


class TestPaired:
    def test_is_the_difference_of_the_shares_and_mirrors(self):
        rng = np.random.default_rng(0)
        ours, theirs = rng.random(300) < 0.7, rng.random(300) < 0.6
        args = {"confidence": 0.95, "resamples": 400, "seed": 3}
        for metric in (METRIC, "student/retrieval/i2t/r5", "student/retrieval/i2t/r1"):
            there = comparison.paired(metric, table(list(ours)), table(list(theirs)), **args)
            back = comparison.paired(metric, table(list(theirs)), table(list(ours)), **args)
            assert there.delta == pytest.approx(ours.mean() - theirs.mean())
            assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
            assert there.differing == int((ours != theirs).sum())
        same = comparison.paired("student/retrieval/t2i/r1", table(list(ours)), table(list(theirs)), **args)
        assert (same.delta, same.verdict) == (0.0, "no evidence")
        assert comparison.paired("student/robustness/mean/all", table([True]), table([True]), **args) is None

    def test_counts_every_caption_of_a_picture(self):
        rows = table([True] * 10)
        shared = comparison.paired(
            "student/retrieval/t2i/r1", rows, [
                {**row, "retrieval": {"student": {"i2t": 1, "t2i": [1, 1]}}} for row in rows
            ], confidence=0.9, resamples=100, seed=0,
        )  # fmt: skip
        assert shared.delta == -0.5

    def test_leaves_out_samples_without_the_label(self):
        ours, theirs = table([True] * 20), table([False] * 20)
        for rows in (ours, theirs):
            for row in rows[:10]:
                row["zero_shot"] = {}
        found = comparison.paired(METRIC, ours, theirs, confidence=0.9, resamples=100, seed=0)
        assert (found.delta, found.differing) == (1.0, 10)
        mean = METRIC.replace("top1", "mean_per_class")
        assert comparison.paired(mean, ours, theirs, confidence=0.9, resamples=100, seed=0).delta == 1.0
