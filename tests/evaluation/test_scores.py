"""Names of slices: readable, allowed by MLflow, and never shared."""

import itertools

import pytest

from mobileclip.evaluation.scores import slice_name
from mobileclip.tracking.run_tracker import metric_name

VALUES = (
    "東京", "大阪", "true", "False", "New York", "New-York", "new york", "Größe", "a/b", "a:2fb", "a:b", ".", "..",
    "a.b", "...", "", "::", ":", "a\nb", "a\\b", "ж" * 99, "ж" * 101, "ж" * 102, "/" * 40, "/" * 41, "\ud800",
)  # fmt: skip


@pytest.mark.parametrize("value", ["東京", "大阪", "seen", "New York", "v1.2_a-b"])
def test_letters_of_all_scripts_stay(value):
    assert slice_name(value) == value


def test_no_two_values_share_a_name_and_mlflow_takes_each():
    names = {value: slice_name(value) for value in VALUES}
    for one, other in itertools.combinations(VALUES, 2):
        assert names[one] != names[other], (one, other)
    for name in names.values():
        metric = f"slice/{name}/student/zero_shot/group/mean_per_class/high"
        assert metric_name(metric) == metric  # as it is
        assert "/" not in name
