"""Variants of a section: merged, checked, named."""

import copy

import pytest

from mobileclip.errors import ConfigError
from mobileclip.kubeflow import sweep
from tests.tiny_chain import params

CONFIG = params()["distill"]


def test_mappings_are_merged_and_all_other_values_replaced():
    before = copy.deepcopy(CONFIG)
    found = sweep.variant(CONFIG, {"one": {"training": {"steps": 7}, "seed": 3}}, "one")
    assert found["training"] == {**CONFIG["training"], "steps": 7}
    assert found["seed"] == 3
    assert {key: value for key, value in found.items() if key not in {"training", "seed"}} == {
        key: value for key, value in CONFIG.items() if key not in {"training", "seed"}
    }
    assert before == CONFIG


def test_a_student_without_changes_is_the_section_itself():
    assert sweep.variant(CONFIG, {"same": {}}, "same") == CONFIG


def test_numbers_come_from_kubeflow_as_floats():
    assert sweep.variant(CONFIG, {"one": {"training": {"steps": 7.0}}}, "one")["training"]["steps"] == 7


def test_an_unknown_student_is_named():
    with pytest.raises(ConfigError, match=r"^students: no 'two', want one of one"):
        sweep.variant(CONFIG, {"one": {}}, "two")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^students: no YAML file '.*none\.yaml'"):
        sweep.read(tmp_path / "none.yaml", CONFIG)
