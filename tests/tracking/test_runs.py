"""Runs in MLflow, against a real server and a real SQLite file."""

import http.server
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mobileclip import config, entry
from mobileclip.errors import ConfigError, DataError
from mobileclip.promotion.registered import trace
from mobileclip.tracking import run_tracker
from mobileclip.tracking import runs as tracking
from mobileclip.tracking.origins import origins
from mobileclip.tracking.protocol import LogTracker
from mobileclip.tracking.run_tracker import metric_name
from tests import mlflow_server, students

ROOT = Path(__file__).parents[2]
CONFIG = {"model": "tiny", "training": {"steps": 3, "rates": [0.1, 0.2]}, "teachers": [{"name": "a"}]}


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(monkeypatch, request):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return tracking.connect()


class TestStageRun:
    def test_logs_parameters_metrics_files_and_inputs(self, server, tmp_path, monkeypatch):
        monkeypatch.setenv("KFP_RUN_ID", "kfp-1")
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "a.txt").write_text("a")
        (tmp_path / "figure.txt").write_text("figure")
        with tracking.stage_run("distill", CONFIG, {"data": str(tmp_path / "raw")}) as tracker:
            for step in range(3):
                tracker.log_metrics({"loss": 1.0 / (step + 1), "i2t/r@10": 0.5}, step=step)
            tracker.log_metrics({"odd": math.nan})
            tracker.log_file(str(tmp_path / "figure.txt"), folder="figures")
        run = server.get_run(tracker.run_id)
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "distill"
        assert run.data.params == {
            "distill.model": "tiny",
            "distill.training.steps": "3",
            "distill.training.rates": "[0.1, 0.2]",
            "distill.teachers.0.name": "a",
        }
        history = server.get_metric_history(tracker.run_id, "loss")
        assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
        assert run.data.metrics[metric_name("i2t/r@10")] == 0.5
        assert math.isnan(run.data.metrics["odd"])
        assert [f.path for f in server.list_artifacts(tracker.run_id, "figures")] == ["figures/figure.txt"]
        assert run.data.tags["kfp.run_id"] == "kfp-1"
        from mobileclip.lineage.record import input_digest

        (used,) = run.inputs.dataset_inputs
        digest = input_digest(str(tmp_path / "raw"))
        assert used.dataset.name == "data"
        assert digest.startswith(used.dataset.digest)
        assert {tag.key: tag.value for tag in used.tags}["sha256"] == digest

    def test_marks_a_failed_run_with_its_sentence(self, server):
        with (
            pytest.raises(DataError),
            tracking.stage_run("prepare", CONFIG, {}) as tracker,
        ):
            raise DataError("data: nothing there.")
        run = server.get_run(tracker.run_id)
        assert run.info.status == "FAILED"
        assert run.data.tags["mobileclip.error"] == "data: nothing there."

    def test_adopts_an_injected_run_and_never_changes_its_parameters(self, server, monkeypatch, caplog):
        experiment = tracking.experiment_id(server)
        run_id = server.create_run(experiment).info.run_id
        server.log_param(run_id, "distill.model", "other")
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        with tracking.stage_run("distill", CONFIG, {}) as tracker:
            assert tracker.run_id == run_id
        assert server.get_run(run_id).data.params["distill.model"] == "other"
        assert "distill.model" in caplog.text

    def test_needs_no_server_where_it_is_off(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
        with tracking.stage_run("distill", CONFIG, {}) as tracker:
            assert isinstance(tracker, LogTracker)

    def test_only_the_first_process_of_a_job_reports(self, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        with tracking.stage_run("distill", CONFIG, {}) as tracker:
            assert isinstance(tracker, LogTracker)

    def test_without_mlflow_it_writes_to_the_log(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mlflow", None)
        with tracking.stage_run("distill", CONFIG, {}) as tracker:
            assert isinstance(tracker, LogTracker)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
        with pytest.raises(ConfigError, match="install"), tracking.stage_run("distill", CONFIG, {}):
            pass

    def test_refuses_another_switch(self, monkeypatch):
        monkeypatch.setenv("MOBILECLIP_TRACKING", "maybe")
        with pytest.raises(ConfigError, match="'maybe', want on or off"), tracking.stage_run("distill", CONFIG, {}):
            pass


class TestServerOutOfReach:
    def test_at_the_start_is_one_sentence_without_the_password(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(ConfigError) as caught, tracking.stage_run("distill", CONFIG, {}):
            pass
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "MOBILECLIP_TRACKING=off" in str(caught.value)

    def test_in_flight_costs_one_warning_and_no_metric(self, server, monkeypatch, caplog, tmp_path):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        (tmp_path / "note.txt").write_text("note")
        with mlflow_server.proxy() as proxy:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
            with caplog.at_level(logging.WARNING), tracking.stage_run("distill", CONFIG, {}) as tracker:
                tracker.log_metrics({"loss": 3.0}, step=0)
                assert tracker.flush()
                proxy.fail()
                tracker.log_metrics({"loss": 2.0}, step=1)
                assert not tracker.flush()
                tracker.log_file(str(tmp_path / "note.txt"))
                assert not tracker.flush()
                proxy.failing = False
                tracker.log_metrics({"loss": 1.0}, step=2)
        assert [r.levelno for r in caplog.records if r.name == "mobileclip.tracking.run_tracker"].count(
            logging.WARNING
        ) == 1
        assert [m.value for m in server.get_metric_history(tracker.run_id, "loss")] == [3.0, 2.0, 1.0]
        assert [f.path for f in server.list_artifacts(tracker.run_id)] == ["note.txt"]
        assert server.get_run(tracker.run_id).info.status == "FINISHED"

    @pytest.mark.usefixtures("server")
    @pytest.mark.parametrize("how", ["cut", "hang", "full"])
    def test_to_the_end_costs_the_stage_seconds_and_one_warning(self, monkeypatch, caplog, how, tmp_path):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
        monkeypatch.setattr(run_tracker, "END_SECONDS", {"FINISHED": (1.0, 1.0)})
        monkeypatch.setattr(run_tracker, "_FLUSH_SECONDS", 0.0)
        (tmp_path / "note.txt").write_text("note")
        with mlflow_server.proxy() as proxy, caplog.at_level(logging.INFO, logger="mobileclip"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
            begun = time.monotonic()
            with tracking.stage_run("distill", CONFIG, {}) as tracker:
                proxy.fail(how)
                for step in range(2000):
                    tracker.log_metrics({"loss": 1.0, "lr": 0.1}, step=step)
                    tracker.log_file(str(tmp_path / "note.txt"))
            spent = time.monotonic() - begun
        assert spent < 300  # one request alone may take an hour
        assert f"run {tracker.run_id} is incomplete" in caplog.text
        said = [r for r in caplog.records if r.levelno >= logging.WARNING and tracker.run_id in r.getMessage()]
        assert len(said) == 1

    def test_a_server_that_answers_again_gets_all_of_it(self, server, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with mlflow_server.proxy() as proxy:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
            with tracking.stage_run("distill", CONFIG, {}) as tracker:
                for step in range(3000):
                    if step == 1000:
                        proxy.fail("full")
                        assert not tracker.flush()
                    tracker.log_metrics({"loss": float(step)}, step=step)
                proxy.failing = False
        history = server.get_metric_history(tracker.run_id, "loss")
        assert sorted(m.value for m in history) == [float(step) for step in range(3000)]
        assert server.get_run(tracker.run_id).info.status == "FINISHED"


class TestNames:
    @pytest.mark.parametrize("name", ["loss", "slice/東京/top1", "a b-c.d:e", "x" * 250, "größe/é"])
    def test_what_mlflow_takes_stays(self, name):
        assert metric_name(name) == name

    ODD = ("", ".", "..", "/", "/a", "a/", "a//b", "a/./b", "a/../b", "../a", "x" * 251, "x" * 252, "a@b", "a_b", "a%b",
           "東京?", "大阪?", "a\nb", "../../etc/passwd", "-", "_")  # fmt: skip

    def test_odd_ones_stay_apart_and_arrive(self, server):
        with tracking.stage_run("distill", CONFIG, {}) as tracker:
            for index, name in enumerate(self.ODD):
                tracker.log_metrics({name: float(index)})
            tracker.log_metrics({"after": 1.0})
        found = server.get_run(tracker.run_id)
        assert found.info.status == "FINISHED"
        wanted = {metric_name(name): float(index) for index, name in enumerate(self.ODD)} | {"after": 1.0}
        assert len(wanted) == len(self.ODD) + 1
        assert found.data.metrics == wanted

    def test_one_that_the_server_refuses_still_is_named_and_blocks_no_other(self, server, monkeypatch, caplog):
        monkeypatch.setattr(run_tracker, "metric_name", lambda name: name)  # a server with rules of its own
        with tracking.stage_run("distill", CONFIG, {}) as tracker:
            for step in range(50):
                tracker.log_metrics({"loss": float(step), "..": 1.0, "after": 2.0}, step=step)
            assert tracker.flush()
            tracker.log_metrics({"loss": 50.0, "..": 1.0}, step=50)
        found = server.get_run(tracker.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.metrics == {"loss": 50.0, "after": 2.0}
        assert len(server.get_metric_history(tracker.run_id, "loss")) == 51
        assert [r.getMessage()[:41] for r in caplog.records if "refuses" in r.getMessage()] == [
            "tracking: MLflow refuses the metric '..' "
        ]


class TestVersion:
    @pytest.mark.parametrize(
        ("answer", "wanted"),
        [
            ("2.22.1", r"its server is version 2\.22\.1, want an MLflow server of version 3 or later\.$"),
            ("<!doctype html>\n<p>log in", r"its server is something else \('<!doctype html>'\), want an MLflow"),
        ],
    )
    def test_of_the_server_is_asked_before_work_is_spent(self, monkeypatch, answer, wanted):
        class Old(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_):
                """Stay silent."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Old) as old:
            threading.Thread(target=old.serve_forever, daemon=True).start()
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{old.server_address[1]}")
            with pytest.raises(ConfigError, match=wanted), tracking.stage_run("distill", CONFIG, {}):
                pass
            old.shutdown()


class TestParents:
    def test_child_in_another_process_ends_killed_by_sigterm(self, server, tmp_path):
        program = (
            "import time\n"
            "from mobileclip.tracking import runs as tracking\n"
            "with tracking.stage_run('distill', {'a': 1}, {}) as tracker:\n"
            "    tracker.log_metrics({'loss': 1.0})\n"
            "    print(tracker.run_id, flush=True)\n"
            "    time.sleep(120)\n"
        )
        with tracking.parent_run("pipeline") as parent:
            assert os.environ[tracking.PARENT_RUN] == parent
            child = subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            run_id = child.stdout.readline().strip()
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 128 + signal.SIGTERM
        assert tracking.PARENT_RUN not in os.environ
        run = server.get_run(run_id)
        assert run.info.status == "KILLED"
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.metrics == {"loss": 1.0}
        assert server.get_run(parent).info.status == "FINISHED"

    def test_an_injected_run_becomes_the_parent(self, server, monkeypatch):
        injected = server.create_run(tracking.experiment_id(server)).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", injected)
        with (
            tracking.parent_run("pipeline") as parent,
            tracking.stage_run("export", CONFIG, {}) as tracker,
        ):
            pass
        assert parent == injected
        assert tracker.run_id != injected
        assert server.get_run(tracker.run_id).data.tags["mlflow.parentRunId"] == injected
        assert os.environ["MLFLOW_RUN_ID"] == injected

    def test_pods_that_share_a_key_share_one_parent(self, server, monkeypatch):
        monkeypatch.setenv(tracking.PARENT_KEY, "kfp-run-7")
        found: list[str] = []

        def pod(stage: str) -> None:
            with tracking.stage_run(stage, CONFIG, {}) as tracker:
                found.append(tracker.run_id)

        pods = [threading.Thread(target=pod, args=(stage,)) for stage in ("reinforce", "calibrate", "distill")]
        for thread in pods:
            thread.start()
        for thread in pods:
            thread.join()
        pod("export")
        parents = {server.get_run(run_id).data.tags["mlflow.parentRunId"] for run_id in found}
        assert len(found) == 4
        assert len(parents) == 1
        left = server.create_run(
            tracking.experiment_id(server), tags={"mlflow.parentRunId": next(iter(parents))}
        ).info.run_id
        assert tracking.close_parent() == [left]
        assert server.get_run(left).info.status == "KILLED"
        assert server.get_run(next(iter(parents))).info.status == "FINISHED"
        assert {server.get_run(run_id).info.status for run_id in found} == {"FINISHED"}


def test_samples_system_metrics_of_long_stages(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with tracking.stage_run("distill", CONFIG, {}) as tracker:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.5)
            if "system/system_memory_usage_megabytes" in server.get_run(tracker.run_id).data.metrics:
                break
    assert "system/cpu_utilization_percentage" in server.get_run(tracker.run_id).data.metrics


def test_a_sqlite_file_in_the_working_folder_is_the_default(tmp_path):
    with tracking.stage_run("distill", CONFIG, {}) as tracker:
        tracker.log_metrics({"loss": 1.0})
    assert (tmp_path / "mlflow.db").is_file()
    run = tracking.connect().get_run(tracker.run_id)
    assert run.data.metrics == {"loss": 1.0}
    assert tracking.connect().get_experiment(run.info.experiment_id).name == "mobileclip"


def test_importing_it_loads_no_mlflow(tmp_path):
    program = "import sys, mobileclip.tracking, mobileclip.entry; sys.exit('mlflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False).returncode == 0


def test_report_and_figures_are_artifacts_of_the_run(server, tmp_path):
    world = students.world()
    section = config.Evaluate(classifications=[config.Classification()], bootstrap=50, gallery=2)
    inputs = {"data": world.data, "student": world.folders("good")["student"]}
    entry.run_stage("evaluate", section, out=tmp_path / "evaluate", **inputs)
    (run,) = server.search_runs([tracking.experiment_id(server)])
    assert "report.html" in {file.path for file in server.list_artifacts(run.info.run_id)}
    figures = {Path(file.path).name for file in server.list_artifacts(run.info.run_id, "figures")}
    assert figures == {path.name for path in (tmp_path / "evaluate" / "figures").iterdir()} != set()
    kept = server.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(kept).read_bytes() == (tmp_path / "evaluate" / "report.html").read_bytes()
    assert {used.dataset.name for used in run.inputs.dataset_inputs} == {"data", "student"}
    assert run.data.metrics["student/zero_shot/group/top1"] > 0.5


def test_the_run_behind_a_record_is_found_by_its_digests(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "kfp-9")
    monkeypatch.setenv("MOBILECLIP_GIT_COMMIT", "c0ffee")
    source = students.draw(tmp_path / "raw", count=16)
    for _ in range(2):  # the second run is not the one that is found by another config
        entry.run_stage("prepare", config.Prepare(), out=tmp_path / "prepare", source=source)
    entry.run_stage("prepare", config.Prepare(shard_samples=4), out=tmp_path / "other", source=source)
    found = trace(str(tmp_path / "prepare"))
    (origin,) = origins(found).values()
    run = server.get_run(origin.pop("run"))
    assert origin == {"git": "c0ffee", "kubeflow run": "kfp-9"}
    assert run.data.params["prepare.shard_samples"] == "1000"
    assert run.info.status == "FINISHED"
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    assert origins(found) == {}
