"""What `mobileclip run` says at its end: the decision with its reasons, the same when nothing is left to do."""

import shutil

import pytest

from mobileclip import config
from mobileclip.__main__ import main
from mobileclip.config.params_file import render
from tests import mlflow_server, students


@pytest.fixture(autouse=True)
def _server(monkeypatch, tmp_path):
    mlflow_server.forget_settings(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url())
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("minimum", "code", "line"),
    [
        (0.5, 0, "promoted: 'told-0' version 1"),
        (1.5, 3, "refused: student/zero_shot/group/top1 is 0.666667, wanted >= 1.5."),
    ],
)
def test_of_a_run_and_of_one_with_nothing_to_do(capsys, tmp_path, minimum, code, line):
    root = tmp_path / "run"
    shutil.copytree(students.world().folders("good")["student"].parent, root)
    gate = config.Gate(
        metric="student/zero_shot/group/top1", minimum=minimum, lineage="ignore"
    )  # the data lies elsewhere
    params = config.Params(
        evaluate=config.Evaluate(classifications=[config.Classification()]),
        promote=config.Promote(model_name=f"told-{code}", gate=gate),
    )
    (tmp_path / "params.yaml").write_text(render(params))
    for _ in range(2):
        found = main(["run", "--params", "params.yaml", "--root", str(root), "--from", "promote"])
        shown = capsys.readouterr()
        assert (found, line in shown.out) == (code, True), shown.out
        assert f"release: {root / 'promote' / 'release.html'}" in shown.out
    assert "all 1 stages are current" in shown.err
