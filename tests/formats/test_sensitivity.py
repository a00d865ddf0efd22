"""The shortest prefix of the worst layers that meets the budget, found without trying all."""

import json
import math

import pytest

from mobileclip.formats.sensitivity import MARGIN, choose, describe, report

LOSS = {"a": 0.01, "b": 0.4, "c": 0.02, "d": 0.2, "e": 0.05, "f": 0.001}


@pytest.fixture
def error_of():
    """Errors of layers add up in squares, as independent ones do."""
    calls = []

    def error(keep):
        calls.append(tuple(keep))
        return sum(loss**2 for layer, loss in LOSS.items() if layer not in keep) ** 0.5

    error.calls = calls
    return error


@pytest.mark.parametrize(
    ("budget", "keep"),
    [(0.7, []), (0.3, ["b"]), (0.2, ["b", "d"]), (0.05, ["b", "d", "e"]), (0.02, ["b", "d", "e", "c"])],
)
def test_fewest_layers_that_meet_the_budget(error_of, budget, keep):
    choice = choose(list(LOSS), error_of, budget=budget, most=1.0)
    assert choice.keep == keep
    assert choice.error <= MARGIN * budget
    assert choice.error == pytest.approx(error_of(keep))
    if keep:
        assert error_of(keep[:-1]) > MARGIN * budget
        assert choice.alone == pytest.approx(LOSS)


def test_nothing_is_measured_where_nothing_must_be_kept(error_of):
    assert choose(list(LOSS), error_of, budget=1.0, most=1.0).alone == {}
    assert error_of.calls == [()]


def test_no_more_than_the_allowed_share(error_of):
    choice = choose(list(LOSS), error_of, budget=0.02, most=0.5)
    assert choice.keep == ["b", "d", "e"]
    assert choice.error > 0.02
    assert choose(list(LOSS), error_of, budget=0.02, most=0.1).keep == []


def test_the_layers_that_lose_most_in_words():
    assert describe(LOSS) == "b 0.4, d 0.2, e 0.05"
    assert describe({}) == ""


def test_report_holds_every_layer_the_worst_first():
    layers = {**LOSS, "g": math.inf}
    table = json.loads(report("text.int8.onnx", layers, ["g", "b"], error=0.3, budget=0.1), parse_constant=pytest.fail)
    assert (table["program"], table["error"], table["budget"]) == ("text.int8.onnx", 0.3, 0.1)
    assert [row["layer"] for row in table["layers"]] == ["g", "b", "d", "e", "c", "a", "f"]
    assert [row["layer"] for row in table["layers"] if row["kept"]] == ["g", "b"]
    assert {row["layer"]: row["error"] for row in table["layers"]} == {**LOSS, "g": None}
