"""References between components, groups, and what the UI gets to see."""

import json
import math
from types import SimpleNamespace

import pytest
from kfp import dsl

from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.kubeflow import artifacts as io
from mobileclip.kubeflow import run as stages


@pytest.fixture
def finished(tmp_path):
    """A folder that a stage has finished."""
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "record.json").write_text('{"stage": "distill"}\n')
    return folder


def test_a_reference_leads_back_to_its_folder(finished, tmp_path):
    io.write_reference(tmp_path / "out", str(finished))
    assert io.read_reference(tmp_path / "out") == str(finished)
    assert io.read(SimpleNamespace(path=str(tmp_path / "out"))) == str(finished)
    assert io.read(None) == ""


def test_a_replaced_or_lost_result_is_refused(finished, tmp_path):
    io.write_reference(tmp_path / "out", str(finished))
    (finished / "record.json").write_text('{"stage": "other"}\n')
    with pytest.raises(IntegrityError, match="another run wrote to the same root"):
        io.read_reference(tmp_path / "out")
    (finished / "record.json").unlink()
    with pytest.raises(DataError, match="nothing finished at"):
        io.read_reference(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "no json", "[]", "3", '{"uri": "x"}', '"x"', "null"])
def test_other_files_are_no_references(text, tmp_path):
    (tmp_path / "out").write_text(text)
    with pytest.raises(IntegrityError, match="no reference"):
        io.read_reference(tmp_path / "out")


@pytest.mark.parametrize("group", ["", "3", "3/", "/3", "3/3", "4/3", "-1/3", "a/b", "1/2/3", "1.0/3", " 1/3"])
def test_groups_are_index_and_count(group):
    with pytest.raises(ConfigError, match=r"^groups: got"):
        stages.parse_group(group)


def test_every_group_is_there_once(tmp_path):
    parts = []
    for name in ("1/3", "0/3", "2/3"):
        part = dsl.Dataset(uri=str(tmp_path / name.replace("/", "-")))
        io.write_part(part, name, "somewhere")
        parts.append(part)
    assert io.count_parts(parts) == 3
    assert io.count_parts(None) == 0
    for wrong in (parts[:2], [*parts, parts[0]], []):
        with pytest.raises(ConfigError, match=r"^groups: got"):
            io.count_parts(wrong)


def test_the_ui_gets_finite_headline_numbers():
    metrics = {"a": 1.0, "a/low": 0.5, "a/high": 1.5, "slice/x/a": 1.0, "b": math.nan, "c": math.inf, "d/x": 0.0}
    assert io.headline(metrics) == {"a": 1.0, "d/x": 0.0}
    assert len(io.headline({str(index): 0.0 for index in range(1000)})) == 200


def test_the_confusion_matrix_is_of_a_task_that_fits(tmp_path):
    def task(count):
        names = [f"class {index}" for index in range(count)]
        return {"classes": names, "models": {"student": {"confusion": [[1] * count] * count}}}

    (tmp_path / "results.json").write_text(json.dumps({"classifications": {"many": task(61), "few": task(2)}}))
    artifact = dsl.ClassificationMetrics(uri=str(tmp_path / "confusion"))
    io.show_confusion(stages.Done("evaluate", str(tmp_path), {}), artifact)
    assert artifact.metadata["field"] == "few"
    assert artifact.metadata["confusionMatrix"]["rows"] == [{"row": [1, 1]}, {"row": [1, 1]}]
    assert json.loads((tmp_path / "confusion").read_text()) == artifact.metadata


def test_the_generation_stays_for_the_same_arguments_alone(tmp_path):
    root = str(tmp_path / "root")
    first = stages.claim(root, {"steps": 1})
    assert stages.claim(root, {"steps": 1}) == first
    second = stages.claim(root, {"steps": 2})
    third = stages.claim(root, {"steps": 1})
    assert len({first, second, third}) == 3
    stages.Run(root, generation=third).check()
    stages.Run(str(tmp_path / "elsewhere"), generation=third).check()
