"""Submitting against an API server in memory: versions, runs, and what is refused before anything is uploaded."""

import copy
import re
import uuid

import pytest

from mobileclip.errors import ConfigError
from mobileclip.kubeflow import journal
from mobileclip.lineage import code
from pipelines import arguments, defaults, resources, submit, versions
from pipelines.catalog import build
from pipelines.compile import compile_package
from pipelines.resources import PROFILES
from tests import s3
from tests.pipelines import kfp_api
from tests.tiny_chain import params, write_params


@pytest.fixture
def api():
    with kfp_api.serve() as (url, store):
        yield url, store


@pytest.fixture
def call(api, tmp_path):
    """Calls the command; returns its exit code."""
    sections = write_params(tmp_path / "params.yaml", defaults.read())

    def run(*changed, pipeline="train"):
        base = ["--host", api[0], "--params", str(sections), "--root", "/data/runs/one", "--source", "/data/raw"]
        return submit.main([pipeline, *base, *changed])

    return run


def test_uploads_once_per_version_and_starts_a_run_each_time(call, api, capsys):
    url, store = api
    assert call("--version", "0.1.0+gaaa") == 0
    assert call("--version", "0.1.0+gaaa") == 0
    assert call("--version", "0.1.0+gbbb") == 0
    assert [p["display_name"] for p in store.pipelines.values()] == ["mobileclip-train"]
    assert [v["display_name"] for v in store.versions.values()] == ["0.1.0+gaaa", "0.1.0+gbbb"]
    assert [e["display_name"] for e in store.experiments.values()] == ["mobileclip"]
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in store.runs.values()]
    first, second = store.versions
    assert used == [first, first, second]
    printed = capsys.readouterr().out
    assert all(f"{url}/#/runs/details/{run}" in printed for run in store.runs)


def test_a_run_is_told_where_it_works_and_for_which_code(call, api):
    assert call("--groups", "3", "--source-digest", "f" * 64) == 0
    (run,) = api[1].runs.values()
    given = run["runtime_config"]["parameters"]
    assert given.pop("generation")
    assert given == {
        "root": "/data/runs/one", "source": "/data/raw", "source_digest": "f" * 64,
        "code": code.package_digest(), "groups": ["all/3"],
    }  # fmt: skip


def test_only_sections_that_differ_from_the_version_are_sent(call, api, tmp_path):
    sections = defaults.read()
    sections["distill"]["seed"] = 5
    other = write_params(tmp_path / "other.yaml", sections)
    assert call("--params", str(other)) == 0
    (run,) = api[1].runs.values()
    given = run["runtime_config"]["parameters"]
    assert given["distill"] == sections["distill"]
    assert not set(given) & (set(sections) - {"distill"})


def test_a_version_is_named_by_project_revision_and_content(call, api):
    assert call("--profile", "cpu") == 0
    assert call("--profile", "cpu") == 0
    assert call("--profile", "gpu") == 0
    names = [version["display_name"] for version in api[1].versions.values()]
    assert len(names) == 2
    assert all(re.fullmatch(r"\d+\.\d+\.\d+\+g[0-9a-f]{9}(\.dirty)?\.[0-9a-f]{8}", name) for name in names)


def test_an_unchanged_package_can_be_submitted_any_number_of_times(call, api):
    for _ in range(4):
        assert call("--profile", "cpu") == 0
    (version,) = api[1].versions.values()
    assert version["name"] == version["display_name"]
    assert len(api[1].runs) == 4


def test_a_version_that_an_upload_at_once_named_like_its_pipeline_is_found(call, api):
    """As earlier uploads left it: the display name alone is the version's."""
    assert call("--version", "one", "--profile", "cpu") == 0
    (version,) = api[1].versions.values()
    version["name"] = "mobileclip-train"
    for _ in range(2):
        assert call("--version", "one", "--profile", "cpu") == 0
    assert len(api[1].versions) == 1


def test_of_two_versions_of_one_name_the_newest_equal_one_is_taken(call, api):
    """What the second submission of an earlier release left behind."""
    assert call("--version", "one", "--profile", "cpu") == 0
    (first,) = api[1].versions.values()
    twin = {**first, "pipeline_version_id": "twin", "created_at": "2100-01-01T00:00:00Z"}
    api[1].versions["twin"] = twin
    first["name"] = "mobileclip-train"
    assert call("--version", "one", "--profile", "cpu") == 0
    (_, run) = api[1].runs.values()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == "twin"


def test_a_version_never_changes_what_it_holds(call, api, capsys):
    assert call("--version", "1", "--profile", "cpu") == 0
    assert call("--version", "1", "--profile", "gpu") == 2
    assert (
        capsys.readouterr().err == "error: version: '1' of 'mobileclip-train' holds another package, want a new name.\n"
    )
    assert len(api[1].versions) == len(api[1].runs) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s["caption"].update(temprature=1.0), "caption.temprature: unknown key"),
        (lambda s: s["export"].update(opset=3), "export.opset: got 3"),
        (lambda s: s["filter"].update(model="trained:x"), "filter.model: got 'trained:x'"),
        (lambda s: s.update(destill={}), "destill: unknown key"),
    ],
)
def test_wrong_sections_are_refused_before_anything_is_uploaded(call, api, tmp_path, capsys, change, sentence):
    sections = copy.deepcopy(defaults.read())
    change(sections)
    assert call("--params", str(write_params(tmp_path / "wrong.yaml", sections))) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not api[1].pipelines
    assert not api[1].runs


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (["--groups", "0"], "groups: got 0"),
        (["--groups", "50000"], "groups: got 50000"),
        (["--source", ""], "source: missing"),
        (["--params", "nowhere.yaml"], "params: no file"),
        (["--host", "http://127.0.0.1:9"], "host: no Kubeflow Pipelines API answers at"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_uploaded(call, api, capsys, changed, sentence):
    assert call(*changed) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not api[1].pipelines


def test_a_loop_takes_as_many_groups_as_fit_and_a_job_any_number(call, api, capsys, monkeypatch):
    assert call("--groups", "1024") == 0
    (run,) = api[1].runs.values()
    assert run["runtime_config"]["parameters"]["groups"] == ["all/1024"]
    monkeypatch.setattr(resources, "FAN_OUT", "ParallelFor")
    monkeypatch.setattr(arguments, "FAN_OUT", "ParallelFor")
    assert call("--groups", "64") == 2
    assert re.match(r"error: groups: got 64, want at most \d\d: Argo keeps", capsys.readouterr().err)
    assert len(api[1].versions) == 1


def test_too_many_parameters_are_refused_here_and_by_the_server(call, api, tmp_path, capsys):
    sections = defaults.read()
    (teacher,) = params()["train_teacher"]["teachers"]
    sections["train_teacher"]["teachers"] = [{**teacher, "name": f"t{index}"} for index in range(40)]
    assert call("--params", str(write_params(tmp_path / "many.yaml", sections))) == 2
    assert "bytes, the server takes 10000" in capsys.readouterr().err
    assert not api[1].pipelines


@pytest.mark.parametrize(("outcome", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 4)])
def test_waits_for_the_end_of_the_run(call, api, capsys, outcome, code):
    api[1].outcome = outcome
    assert call("--wait", "--poll", "1", "--timeout", "60") == code
    assert f": {outcome.lower()}" in capsys.readouterr().out


def test_a_failed_run_is_taken_up_again_with_the_same_arguments(call, api, capsys):
    """The same generation of the root: what is committed stays, and Kubeflow's cache may serve finished tasks."""
    store = api[1]
    store.outcomes = ["FAILED", "FAILED", "SUCCEEDED"]
    assert call("--wait", "--poll", "0.01", "--attempts", "4") == 0
    assert len(store.runs) == 3
    parameters = [run["runtime_config"]["parameters"] for run in store.runs.values()]
    assert parameters[0] == parameters[1] == parameters[2]
    assert parameters[0]["generation"]
    assert "attempt 3 of 4 resumes from what is committed" in capsys.readouterr().out
    assert [run["display_name"].rpartition(" 20")[0] for run in store.runs.values()] == ["train /data/runs/one"] * 3


@pytest.mark.parametrize(("outcome", "code"), [("FAILED", 1), ("CANCELED", 4)])
def test_attempts_end_where_they_are_used_up_or_somebody_canceled(call, api, outcome, code):
    api[1].outcome = outcome
    assert call("--wait", "--poll", "0.01", "--attempts", "2") == code
    assert len(api[1].runs) == (2 if outcome == "FAILED" else 1)


def test_recurring_runs_are_replaced_by_name_and_never_served_from_kubeflows_cache(call, api, capsys):
    url, store = api
    assert call("--cron", "0 0 2 * * *") == 0
    assert call("--cron", "0 0 4 * * *") == 0
    assert call("--cron", "0 0 4 * * *", "--name", "other") == 0
    found = {run["display_name"]: run for run in store.recurring.values()}
    assert len(found) == len(store.recurring) == 2
    assert found["train /data/runs/one"]["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert not store.runs
    for run in found.values():
        assert run["max_concurrency"] == 1
        assert "generation" not in run["runtime_config"]["parameters"]
    (version,) = store.versions.values()
    printed = capsys.readouterr().out
    assert all(f"{url}/#/recurringrun/details/{run}" in printed for run in store.recurring)
    document = version["pipeline_spec"]["pipeline_spec"]
    graphs = [part["dag"] for part in [document["root"], *document["components"].values()] if "dag" in part]
    assert not any(task.get("cachingOptions") for graph in graphs for task in graph["tasks"].values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cron", "0 2 * * *"], "cron: got '0 2 * * *', want six fields"),
        (["--cron", "0 0 2 * * *", "--wait"], "wait: a recurring run never ends"),
    ],
)
def test_wrong_schedules_are_refused(call, api, capsys, options, sentence):
    assert call(*options) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not api[1].recurring


def test_versions_are_listed_and_compared(call, api, capsys):
    assert call("--version", "one", "--profile", "cpu") == 0
    assert call("--version", "two", "--profile", "gpu") == 0
    capsys.readouterr()
    look = ["train", "--host", api[0]]
    assert versions.main(look) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"one", "two"}
    assert versions.main([*look, "--compare", "one", "two"]) == 0
    diff = capsys.readouterr().out.splitlines()
    assert diff[:2] == ["--- one", "+++ two"]
    assert any(line.startswith("+") and "nvidia.com/gpu" in line for line in diff)
    assert not any(line.startswith("-") and "nvidia.com/gpu" in line for line in diff)
    assert versions.main([*look, "--compare", "one", "one"]) == 0
    assert capsys.readouterr().out == ""
    assert versions.main([*look, "--compare", "one", "three"]) == 2
    assert "compare: got 'three', the server has" in capsys.readouterr().err


def test_kubeflows_cache_is_used_for_known_digests_alone(tmp_path, monkeypatch):
    """Without a digest of the source a run gets a generation of its own, and every cache key with it."""
    sections = defaults.read()
    pipeline = build("train", sections, "cpu")
    given = {"root": "/data/one", "num_groups": 2, "source": "/data/raw", "towers": ""}
    runs = [arguments.build_remote(pipeline, sections, sections, digests={}, **given) for _ in range(2)]
    assert runs[0]["generation"] != runs[1]["generation"]


@pytest.mark.parametrize("profile", PROFILES)
def test_local_arguments_follow_the_content_of_the_source(tmp_path, profile):
    sections = defaults.read()
    source = tmp_path / "source"
    source.mkdir()
    (source / "captions.jsonl").write_text("one\n")
    pipeline = build("train", sections, profile)
    given = {"root": str(tmp_path / "root"), "num_groups": 2, "source": str(source), "towers": ""}
    first = arguments.build(pipeline, sections, **given)
    assert arguments.build(pipeline, sections, **given) == first
    (source / "captions.jsonl").write_text("two\n")
    second = arguments.build(pipeline, sections, **given)
    changed = {key for key in first if first[key] != second[key]}
    assert changed == {"source_digest", "generation"}


def test_what_is_uploaded_is_the_package_with_its_kubernetes_settings(call, api):
    assert call(pipeline="reinforce") == 0
    (version,) = api[1].versions.values()
    assert version["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "mobileclip-reinforce"
    assert version["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]


def test_an_unknown_pipeline_is_refused():
    with pytest.raises(ConfigError, match=r"^pipeline: got 'destill', want one of train"):
        build("destill", defaults.read(), "cpu")


def test_a_sweep_is_submitted_with_its_students(call, api, tmp_path, capsys):
    file = tmp_path / "students.yaml"
    file.write_text("small: {training: {steps: 3}}\nlarge: {}\n")
    assert call("--students", str(file), pipeline="sweep") == 0
    (run,) = api[1].runs.values()
    given = run["runtime_config"]["parameters"]
    assert [student["title"] for student in given["students"]] == ["small", "large"]
    assert all(student["place"].endswith(f"/sweep/{student['title']}") for student in given["students"])
    assert given["variants"] == {"small": {"training": {"steps": 3}}, "large": {}}
    assert call(pipeline="sweep") == 2
    assert capsys.readouterr().err == "error: students: missing, want a file of students.\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("one: {training: {stepz: 3}}", "students.one.training.stepz: unknown key"),
        ("one: {training: {steps: -3}}", "distill.training.steps: got -3"),
        ("One: {}", "students: got 'One', want a name"),
        ("[]", "students: .* wants 1 to 100 students"),
        ("one: 3", "students.one: got 3, want a mapping"),
    ],
)
def test_wrong_students_are_refused_before_anything_is_uploaded(call, api, tmp_path, capsys, text, sentence):
    file = tmp_path / "students.yaml"
    file.write_text(text)
    assert call("--students", str(file), pipeline="sweep") == 2
    assert re.match(f"error: {sentence}", capsys.readouterr().err)
    assert not api[1].pipelines


@pytest.fixture
def bucket(monkeypatch):
    """A prefix in a store of objects."""
    s3.use(monkeypatch)
    return f"{s3.bucket(f'submit-{uuid.uuid4().hex}')}/runs/one"


def report(root, run, outcome, stage_outcome):
    """Leave what the exit handler leaves."""
    row = {
        "stage": "prepare", "outcome": stage_outcome, "seconds": 1.0, "groups": 0, "groups_done": 0, "attempts": 1,
        "errors": [{"group": "", "error": "source: got nothing.", "pod": "pod-1"}],
    }  # fmt: skip
    journal.write_report({"run": run, "root": root, "outcome": outcome, "message": "", "stages": [row]})


def test_attempts_come_to_an_end_and_a_canceled_run_is_left_alone(call, api):
    store = api[1]
    store.outcome = "FAILED"
    assert call("--wait", "--poll", "0", "--attempts", "2") == 1
    assert len(store.runs) == 2
    store.outcome = "CANCELED"
    assert call("--wait", "--poll", "0", "--attempts", "3") == 4
    assert len(store.runs) == 3
    assert call("--attempts", "2") == 2


@pytest.mark.parametrize(
    ("outcome", "stage", "code", "runs"),
    [("failed", "failed", 1, 2), ("failed", "bad input", 1, 1), ("taken over", "taken over", 4, 1)],
)
def test_bad_input_and_a_takeover_are_not_tried_again(
    call, api, bucket, monkeypatch, capsys, outcome, stage, code, runs
):
    store = api[1]
    store.outcome = "FAILED"
    real = kfp_api._create_run

    def create(*given):
        run = real(*given)
        report(bucket, run["run_id"], outcome, stage)
        return run

    monkeypatch.setattr(
        kfp_api, "ROUTES", [(m, p, create if (m, p) == ("POST", "/runs") else a) for m, p, a in kfp_api.ROUTES]
    )
    assert call("--root", bucket, "--wait", "--poll", "0", "--attempts", "2") == code
    assert len(store.runs) == runs
    assert "**prepare**: source: got nothing." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--root", "gs://bucket/one"], "root: got 'gs://bucket/one', want s3://"),
        (["--root", "S3://bucket/one"], "root: got 'S3://bucket/one', want s3://"),
        (["--root", "s3:///one"], "root: got 's3:///one', want s3://BUCKET/KEY"),
        (["--root", "runs/one"], "root: got 'runs/one', want s3://BUCKET/KEY or a folder below /data"),
        (["--root", "/tmp/one"], "root: got '/tmp/one', want s3://"),
        (["--root", "/data/../tmp"], "root: got '/data/../tmp', want s3://"),
        (["--source", "minio://raw"], "source: got 'minio://raw', want s3://"),
        (["--source", "/home/me/raw"], "source: got '/home/me/raw', want s3://"),
        (["--towers", "https://hub/towers"], "towers: got 'https://hub/towers', want a local path or s3://"),
    ],
)
def test_places_that_no_pod_shares_are_refused_before_anything_is_uploaded(call, api, capsys, options, sentence):
    assert call(*options) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not api[1].pipelines


def test_whole_numbers_that_kubeflow_would_change_are_refused(call, api, tmp_path, capsys):
    sections = defaults.read()
    sections["distill"]["seed"] = 2**53 - 1
    assert call("--params", str(write_params(tmp_path / "fits.yaml", sections))) == 0
    sections["distill"]["seed"] = 2**53 + 1
    assert call("--params", str(write_params(tmp_path / "large.yaml", sections))) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: distill.seed: got {2**53 + 1}, want at most {2**53 - 1} either way")
    with pytest.raises(ConfigError, match=f"^distill.seed: got {2**53 + 1}"):
        compile_package("train", sections, tmp_path / "p.yaml", profile="cpu")
