"""What stages leave behind: notes below the root, and the report that the exit handler makes of them."""

from contextlib import suppress

import pytest

from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow import journal
from mobileclip.kubeflow import run as kubeflow_run
from tests.tiny_chain import params


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.delenv(kubeflow_run.WORKFLOW, raising=False)


def note(root, stage, group="", *, error=None):
    """One pod's work."""
    with suppress(type(error) if error else ()), journal.noted(root, stage, group):
        if error is not None:
            raise error


def rows(root, **given):
    found = journal.gather(root, "run-1", ["prepare", "caption", "distill"], **{"state": "failed", **given})
    return found, {row["stage"]: row for row in found["stages"]}


def test_a_stage_that_fails_leaves_its_sentence(tmp_path):
    root = str(tmp_path)
    with pytest.raises(ConfigError):
        kubeflow_run.run("prepare", {**params()["prepare"], "shard_samples": -1}, kubeflow_run.Run(root), source="x")
    text = kubeflow_run.finish("FAILED", "", root=root, stages=["prepare", "caption"])
    assert "| prepare | bad input |" in text
    assert "| caption | not reached |" in text
    assert "prepare.shard_samples: got -1" in text
    found, by_stage = rows(root)
    assert journal.has_bad_input(found)
    assert by_stage["prepare"]["errors"][0]["pod"]


def test_a_run_that_goes_well_says_what_was_computed_and_what_was_current(tiny_source, tmp_path, monkeypatch):
    root, config = str(tmp_path / "root"), params()["prepare"]
    where = kubeflow_run.Run(root)
    kubeflow_run.run("prepare", config, where, source=str(tiny_source))
    assert "| prepare | computed |" in kubeflow_run.finish("SUCCEEDED", "", root=root, stages=["prepare"])
    monkeypatch.setenv("KFP_RUN_ID", "run-2")
    kubeflow_run.run("prepare", config, where, source=str(tiny_source))
    assert "| prepare | current |" in kubeflow_run.finish("SUCCEEDED", "", root=root, stages=["prepare"])
    monkeypatch.setenv("KFP_RUN_ID", "run-3")
    assert "| prepare | from cache |" in kubeflow_run.finish("SUCCEEDED", "", root=root, stages=["prepare"])


def test_groups_are_counted_and_those_that_failed_are_named(tmp_path):
    root = str(tmp_path)
    note(root, "caption", "0/3")
    note(root, "caption", "1/3", error=MobileClipError("caption: out of words."))
    note(root, "caption", "1/3")
    note(root, "caption", "2/3", error=ValueError("boom"))
    found, by_stage = rows(root)
    row = by_stage["caption"]
    assert (row["groups"], row["groups_done"], row["outcome"], row["attempts"]) == (3, 2, "failed", 2)
    assert row["errors"] == [{"group": "2/3", "error": "ValueError: boom", "pod": row["errors"][0]["pod"]}]
    assert not journal.has_bad_input(found)
    assert "| caption | failed | 0 | 2 of 3 | 2 |" in journal.render(found)


def test_a_pod_that_is_killed_has_said_that_it_began(tmp_path):
    root = str(tmp_path)
    context = journal.noted(root, "distill")
    context.__enter__()
    assert journal.progress(journal.read(root, "run-1")) == "distill"
    found, by_stage = rows(root)
    assert by_stage["distill"]["outcome"] == "killed"
    assert "killed, evicted or out of memory" in journal.render(found)


def test_a_takeover_is_told_from_a_failure(tmp_path):
    root = str(tmp_path)
    generation = kubeflow_run.claim(root, {"a": 1})
    kubeflow_run.claim(root, {"a": 2})
    with pytest.raises(journal.TakenOverError):
        kubeflow_run.run("prepare", params()["prepare"], kubeflow_run.Run(root, generation=generation), source="x")
    found, by_stage = rows(root)
    assert found["outcome"] == by_stage["prepare"]["outcome"] == "taken over"


def test_the_students_of_a_sweep_are_rows_of_their_own(tmp_path):
    note(f"{tmp_path}/sweep/small", "distill")
    note(f"{tmp_path}/sweep/large", "distill", error=ConfigError("distill: no."))
    _, by_stage = rows(str(tmp_path))
    assert by_stage["small/distill"]["outcome"] == "computed"
    assert by_stage["large/distill"]["outcome"] == "bad input"


def test_a_note_that_cannot_be_written_fails_no_stage(tmp_path):
    (tmp_path / "journal").write_text("a file where the folder should be")
    note(str(tmp_path), "prepare")
