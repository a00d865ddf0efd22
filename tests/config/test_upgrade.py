"""`mobileclip params FILE`: what was filled in is listed, renamed keys move, the reference page is current."""

from pathlib import Path

import pytest
import yaml

from mobileclip.__main__ import main
from mobileclip.config import STAGES, Params, read_params, renames
from mobileclip.config.params_file import describe
from mobileclip.config.reference import reference
from mobileclip.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def old_keys(monkeypatch):
    """Two keys that had other names once: one in place, one moved into a section below."""
    table = {"distill.random_seed": "distill.seed", "distill.lr": "distill.training.optimizer.lr"}
    monkeypatch.setattr(renames, "RENAMED", table)


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


def test_what_a_file_leaves_out_is_filled_and_listed(file, capsys):
    path = file("filter: {keep_share: 0.5, min_score: 0.1, enabled: true}\ncalibrate: {student_training: {steps: 5}}\n")
    assert main(["params", str(path)]) == 0
    said = capsys.readouterr()
    assert yaml.safe_load(said.out) == read_params(path).model_dump(mode="json")
    lines = dict(line.split(": ", 1) for line in said.err.splitlines())
    assert lines["defaults of filter"] == "model, pretrained, batch_size"
    assert "student_training.batch_size, student_training.optimizer, " in lines["defaults of calibrate"]
    assert "student_training.steps" not in lines["defaults of calibrate"]
    assert lines["defaults of promote"] == "all keys"


def test_a_whole_file_needs_nothing(tmp_path, capsys):
    assert main(["params", "--out", str(tmp_path / "whole.yaml")]) == 0
    assert main(["params", str(tmp_path / "whole.yaml")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (tmp_path / "whole.yaml").read_text()


def test_a_short_file_holds_what_differs_alone(file, capsys):
    path = file("filter: {keep_share: 0.5, min_score: -1.0}\nreinforce: {teachers: [{name: a}, {name: teacher}]}\n")
    assert main(["params", str(path), "--short"]) == 0
    said = capsys.readouterr().out
    assert yaml.safe_load(said) == {
        "filter": {"keep_share": 0.5}, "reinforce": {"teachers": [{"name": "a"}, {"name": "teacher"}]},
    }  # fmt: skip


@pytest.mark.usefixtures("old_keys")
def test_renamed_keys_move_and_are_named(file, capsys):
    path = file("distill: {random_seed: 7, lr: 0.5}\n")
    with pytest.raises(ConfigError) as caught:
        read_params(path)
    assert "distill.random_seed: unknown key, it is called distill.seed now" in str(caught.value)
    assert main(["params", str(path), "--short"]) == 0
    said = capsys.readouterr()
    wanted = {"distill": {"seed": 7, "training": {"optimizer": {"lr": 0.5}}}}
    assert yaml.safe_load(said.out) == wanted
    assert said.err.splitlines()[:2] == [
        "renamed: distill.random_seed -> distill.seed",
        "renamed: distill.lr -> distill.training.optimizer.lr",
    ]


@pytest.mark.usefixtures("old_keys")
def test_the_new_name_wins_over_the_old_one():
    assert renames.upgrade({"distill": {"random_seed": 7, "seed": 8}})[0] == {"distill": {"seed": 8}}
    assert renames.upgrade({"filter": None}) == ({"filter": None}, [])


def test_every_renamed_key_is_gone_and_its_new_one_is_there():
    keys = {row[0] for stage in STAGES for row in describe(getattr(Params(), stage), prefix=f"{stage}.")}
    assert not set(renames.RENAMED) & keys
    assert set(renames.RENAMED.values()) <= keys


def test_the_page_of_all_keys_is_current():
    assert (ROOT / "docs/params.md").read_text() == reference(), (
        "python -m mobileclip.config.reference > docs/params.md"
    )
