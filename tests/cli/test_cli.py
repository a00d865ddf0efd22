"""The command line as a user meets it: help, versions, sentences and exit codes, overrides, the chain."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
import yaml

from mobileclip import __version__, config, manifest
from mobileclip.__main__ import main
from mobileclip.chain import CHAIN
from mobileclip.cli.registry import COMMANDS, GROUPS
from mobileclip.config import Optimizer, Teacher, Training
from mobileclip.config.params_file import render
from mobileclip.storage.lock import locked
from tests import tiny_chain
from tests.stages import shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch):
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")


@pytest.fixture
def params(tmp_path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(render(config.Params()))
    return path


def _change(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def _main(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class TestHelp:
    def test_version_and_overview(self, capsys):
        assert _main(capsys, "--version") == (0, f"mobileclip {__version__}\n", "")
        code, out, _ = _main(capsys, "--help")
        assert code == 0
        for row in COMMANDS:
            assert re.search(rf"^  {row.name} +\S", out, re.MULTILINE)
        assert [line for line in out.splitlines() if re.fullmatch(r"\w+", line)] == list(GROUPS)
        assert max(len(line) for line in out.splitlines()) <= 100
        assert _main(capsys)[:2] == (0, out)

    def test_needs_no_torch(self):
        """Seconds depend on the machine; what is imported does not."""
        script = (
            "import sys; from mobileclip.__main__ import main; main(['--help']); main(['params']);"
            "main(['distill', '--params', 'nothing.yaml']);"
            "print(sorted({'torch', 'open_clip', 'mlflow', 'boto3'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    @pytest.mark.parametrize("stage", [row.stage for row in CHAIN])
    def test_of_a_stage_shows_every_key_input_and_default(self, capsys, monkeypatch, params, stage):
        monkeypatch.setenv("COLUMNS", "400")  # a meaning that is broken between columns is not found below
        code, out, _ = _main(capsys, stage, "--params", params, "--help")
        assert code == 0
        row = next(row for row in CHAIN if row.stage == stage)
        assert all(f"--{name}" in out for name in row.names)
        plain = re.sub(r"\s+", "", re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", "", out))
        for key, info in type(getattr(config.Params(), stage)).model_fields.items():
            assert key.replace("_", "-") in plain or key in plain
            assert re.sub(r"\s+", "", (info.description or ""))[:20] in plain

    @pytest.mark.parametrize("tool", [row.name for row in COMMANDS if row.target])
    def test_of_a_tool(self, capsys, tool):
        code, out, _ = _main(capsys, tool, "--help")
        assert code == 0
        assert f"Usage: mobileclip {tool}" in out

    def test_an_unknown_command(self, capsys):
        code, _, err = _main(capsys, "destill")
        assert code == 2
        assert err == "error: command: got 'destill', did you mean 'distill'?\n"
        assert "`mobileclip --help` lists them" in _main(capsys, "zzz")[2]


def _captions(folder, text: str) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(shapes.draw("red", "square", 20))
    (folder / "captions.jsonl").write_text(text)
    return folder


class TestWrongInputs:
    """Each prints one sentence, exits with 2, and leaves nothing half-written."""

    def _fails(self, capsys, tmp_path, *arguments, code=2) -> str:
        found, out, err = _main(capsys, *arguments, "--out", tmp_path / "out")
        assert found == code
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in err
        assert out == ""
        # A refused source leaves the list of what is wrong with it, and nothing else.
        assert {path.name for path in (tmp_path / "out").glob("*")} <= {"quarantine.jsonl"}
        return lines[0].removeprefix("error: ")

    def test_empty_folder(self, capsys, tmp_path, params):
        (tmp_path / "empty").mkdir()
        sentence = self._fails(capsys, tmp_path, "prepare", "--params", params, "--source", tmp_path / "empty")
        assert (
            sentence == f"prepare.source: '{tmp_path}/empty' holds no 'captions.jsonl', no other table of images and "
            "captions, no .tar shards and no pictures."
        )

    def test_no_folder(self, capsys, tmp_path, params):
        sentence = self._fails(capsys, tmp_path, "prepare", "--params", params, "--source", tmp_path / "none")
        assert sentence == f"prepare: input 'source' is '{tmp_path}/none', there is no such file or folder."

    def test_missing_captions(self, capsys, tmp_path, params):
        unnamed = "captions.jsonl: no column 'captions', got image; prepare.columns.captions names it."
        blank = (
            "prepare.max_bad_share: 1 of 1 samples are bad (want at most 1.00%), the first is 'a.png': no caption; "
            f"all are in '{tmp_path / 'out' / 'quarantine.jsonl'}'."
        )
        for name, text, expected in (
            ("empty", "", "prepare.source: '{}' holds no samples."),
            ("none", '{"image": "a.png"}\n', unnamed),
            ("blank", '{"image": "a.png", "caption": " "}\n', blank),
        ):
            source = _captions(tmp_path / name, text)
            assert self._fails(capsys, tmp_path, "prepare", "--params", params, "--source", source) == expected.format(
                source
            )
        source = _captions(tmp_path / "pictures", "")
        (source / "captions.jsonl").unlink()
        sentence = self._fails(capsys, tmp_path, "prepare", "--params", params, "--source", source)
        assert (
            sentence
            == f"prepare.source: no picture in '{source}' has a caption (.txt beside it), nor is there a table."
        )

    def test_unknown_key(self, capsys, tmp_path, params, tiny_source):
        arguments = ("prepare", "--params", params, "--source", tiny_source)
        _change(params, "  shard_samples: 1000", "  shard_sample: 1000")
        sentence = self._fails(capsys, tmp_path, *arguments)
        assert sentence == "prepare.shard_sample: unknown key, did you mean prepare.shard_samples."

    def test_no_params(self, capsys, tmp_path, tiny_source):
        sentence = self._fails(capsys, tmp_path, "prepare", "--params", tmp_path / "no.yaml", "--source", tiny_source)
        assert sentence == f"params: no file '{tmp_path}/no.yaml', want a YAML file with sections of stages."

    def test_non_existent_teacher(self, capsys, tmp_path, params, tiny_captioned, tiny_teachers):
        arguments = ("reinforce", "--params", params, "--data", tiny_captioned)
        sentence = self._fails(capsys, tmp_path, *arguments, "--teachers", tiny_teachers)
        assert sentence == (
            f"model: no checkpoint at '{tiny_teachers}/teacher', want a folder with open_clip_config.json and "
            "open_clip_model.safetensors."
        )
        assert (
            self._fails(capsys, tmp_path, *arguments)
            == "model: got 'trained:teacher', but there is no input folder with trained models."
        )

    def test_distilling_from_a_teacher_that_is_not_there(self, capsys, tmp_path, params, tiny_reinforced):
        sentence = self._fails(
            capsys, tmp_path, "distill", "--params", params, "--data", tiny_reinforced, "--config.teachers", "[nobody]"
        )
        assert sentence == "distill.teachers: got 'nobody', the dataset has ['first']."

    def test_unreadable_shard(self, capsys, tmp_path, params, tiny_data):
        source = tmp_path / "tars"
        source.mkdir()
        (source / "a.tar").write_bytes(b"\x1f\x8b no tar at all")
        sentence = self._fails(capsys, tmp_path, "prepare", "--params", params, "--source", source)
        assert re.fullmatch(r"prepare\.source: 'a\.tar' is no readable tar: .+\.", sentence)
        with tarfile.open(source / "a.tar", "w") as tar:
            info = tarfile.TarInfo("x.png")
            info.size = 5000
            tar.addfile(info, io.BytesIO(bytes(5000)))
        (source / "a.tar").write_bytes((source / "a.tar").read_bytes()[:2000])
        sentence = self._fails(capsys, tmp_path, "prepare", "--params", params, "--source", source)
        assert re.fullmatch(r"prepare\.source: 'a\.tar' is no readable tar: .+\.", sentence)

        data = tmp_path / "data"
        data.mkdir()
        content = manifest.read(tiny_data)
        for shard in content.shards:
            (data / shard.path).write_bytes((Path(tiny_data) / shard.path).read_bytes())
        manifest.write(str(data), content)
        damaged = data / "train-00001.tar"
        damaged.write_bytes(damaged.read_bytes()[:4000])
        arguments = ("train_teacher", "--params", _change(params, "  teachers: []", TEACHERS), "--data", data)
        assert re.fullmatch(
            rf"shard 'train-00001': '{damaged}' has 4000 bytes, the manifest promises \d+; the file is cut or .*\.",
            self._fails(capsys, tmp_path, *arguments),
        )
        damaged.unlink()
        assert self._fails(capsys, tmp_path, *arguments) == f"data: no file '{damaged}'."

    def test_no_dataset(self, capsys, tmp_path, params):
        (tmp_path / "data").mkdir()
        sentence = self._fails(capsys, tmp_path, "calibrate", "--params", params, "--data", tmp_path / "data")
        assert (
            sentence
            == f"data: no manifest at '{tmp_path}/data/manifest.json', want the output folder of an earlier stage."
        )

    def test_missing_arguments_show_the_usage(self, capsys, params):
        code, _, err = _main(capsys, "prepare", "--params", params)
        assert code == 2
        assert "Usage: mobileclip prepare" in err
        assert "error: Missing option '--out'." in err

    def test_debug_shows_the_trace(self, params, tmp_path):
        from mobileclip.errors import DataError

        with pytest.raises(DataError):
            main(
                [
                    "--debug",
                    "prepare",
                    "--params",
                    str(params),
                    "--source",
                    str(tmp_path / "none"),
                    "--out",
                    str(tmp_path / "out"),
                ]
            )


TEACHER = Teacher(
    name="t", model="tiny-mci",
    training=Training(
        steps=1, batch_size=4, workers=0, log_every=1, checkpoint_every=0, optimizer=Optimizer(warmup_steps=0)
    ),
).model_dump(mode="json")  # fmt: skip
TEACHERS = textwrap.indent(yaml.safe_dump({"teachers": [TEACHER]}, sort_keys=False), "  ").rstrip()


class TestOverrides:
    def _config(self, tmp_path) -> dict:
        return json.loads((tmp_path / "out" / "config.json").read_text())

    def test_keys_of_the_section_can_be_given(self, capsys, tmp_path, params, tiny_source):
        code, out, _ = _main(
            capsys, "prepare", "--params", params, "--source", tiny_source, "--out", tmp_path / "out",
            "--config.shard-samples", "8", "--config.license=MIT", "--config.max_bad_share", "2e-1",
        )  # fmt: skip
        assert code == 0
        assert "samples/train" in out
        assert {k: self._config(tmp_path)[k] for k in ("shard_samples", "license", "max_bad_share")} == {
            "shard_samples": 8, "license": "MIT", "max_bad_share": 0.2,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--config.shard_sample", "8"], "prepare.shard_sample: unknown key, did you mean prepare.shard_samples."),
            (["--config.shard.samples", "8"], "prepare.shard: unknown key, did you mean prepare.shard_bytes."),
            (["--config.shard_samples.x", "8"], "prepare.shard_samples.x: unknown key."),
            (["--config.shard_samples", "0"], "prepare.shard_samples: got 0, input should be greater than 0."),
            (["--config.shard_samples"], "prepare: '--config.shard_samples' has no value."),
            (["--config.license", "a: b: c"], "prepare.license: got 'a: b: c', want a YAML value."),
            (["--shard-samples", "8"], "No such option '--shard-samples'. Did you mean '--config.shard_samples'?"),
        ],
    )  # fmt: skip
    def test_wrong_ones_get_a_sentence(self, capsys, tmp_path, params, tiny_source, arguments, sentence):
        code, _, err = _main(
            capsys, "prepare", "--params", params, "--source", tiny_source, "--out", tmp_path / "out", *arguments
        )
        assert (code, err.splitlines()[-1]) == (2, f"error: {sentence}")
        assert not (tmp_path / "out").exists()

    def test_deep_keys_and_items_of_lists(self, capsys, tmp_path, params, tiny_data):
        _change(params, "  teachers: []", TEACHERS)
        arguments = ("train_teacher", "--params", params, "--data", tiny_data, "--out", tmp_path / "out")
        code, *_ = _main(capsys, *arguments, "--config.teachers.0.training.steps", "2", "--config.seed", "3")
        assert code == 0
        assert self._config(tmp_path)["teachers"][0]["training"]["steps"] == 2
        for place in ("1", "x", "-1"):
            code, _, err = _main(capsys, *arguments, f"--config.teachers.{place}.name", "y")
            assert (code, err.splitlines()[-1]) == (2, f"error: train_teacher.teachers.{place}: unknown key.")

    def test_groups_and_merge(self, capsys, tmp_path, params, tiny_captioned, tiny_teachers):
        _change(params, '      model: "trained:teacher"', '      model: "trained:first"')
        arguments = [
            "reinforce",
            "--params",
            params,
            "--data",
            tiny_captioned,
            "--teachers",
            tiny_teachers,
            "--out",
            tmp_path / "out",
        ]
        arguments += ["--config.views.num_views", "1"]
        assert _main(capsys, *arguments, "--group", 0, "--num-groups", 2)[0] == 0
        code, _, err = _main(capsys, *arguments, "--merge")
        assert code == 1
        assert (
            err.splitlines()[-1]
            == "error: column 'views': shard 'train-00001' is not there yet, run its group before the merge."
        )
        assert _main(capsys, *arguments, "--group", 1, "--num-groups", 2)[0] == 0
        assert _main(capsys, *arguments, "--merge")[0] == 0
        assert (tmp_path / "out" / "record.json").exists()
        code, _, err = _main(capsys, *arguments, "--group", 2, "--num-groups", 2)
        assert (code, err.splitlines()[-1]) == (2, "error: reinforce: group is 2, want 0 to 1.")


class TestChain:
    def test_a_part_of_the_chain_runs_once_and_again_only_where_something_changed(
        self, capsys, tmp_path, params, tiny_source
    ):
        arguments = ["--params", params, "--root", tmp_path / "runs", "--source", tiny_source]

        def states() -> dict[str, str]:
            out = _main(capsys, "status", *arguments)[1]
            return {line.split()[0]: line.split()[1] for line in out.splitlines()[1:] if line.strip()}

        assert set(states().values()) == {"missing"}
        assert _main(capsys, "run", *arguments, "--to", "train_teacher")[0] == 0
        assert {k for k, v in states().items() if v == "current"} == {"prepare", "train_teacher"}
        remembered = json.loads(_main(capsys, "status", tmp_path / "runs", "--json")[1])
        assert {row["stage"] for row in remembered if row["state"] == "current"} == {"prepare", "train_teacher"}
        before = (tmp_path / "runs" / "prepare" / "record.json").stat().st_mtime_ns
        _, _, err = _main(capsys, "run", *arguments, "--to", "train_teacher")
        assert "all 2 stages are current" in err
        _change(params, 'captions: ["captions"]', 'captions: ["captions", "descriptions"]')
        assert states()["train_teacher"] == "changed"
        assert _main(capsys, "run", *arguments, "--to", "train_teacher")[0] == 0
        assert (tmp_path / "runs" / "prepare" / "record.json").stat().st_mtime_ns == before
        assert _main(capsys, "run", *arguments, "--to", "prepare", "--force")[0] == 0
        assert (tmp_path / "runs" / "prepare" / "record.json").stat().st_mtime_ns > before
        code, _, err = _main(capsys, "run", *arguments, "--from", "filter", "--to", "prepare")
        assert (code, err.splitlines()[-1]) == (2, "error: run: --from filter comes after --to prepare.")

    def test_a_second_run_in_a_root_waits_for_the_first(self, tmp_path, params, tiny_source):
        (tmp_path / "runs").mkdir()
        with locked(tmp_path / "runs" / ".run.lock"):
            process = subprocess.Popen(
                [sys.executable, "-m", "mobileclip", "run", "--params", params, "--root", tmp_path / "runs", "--source",
                 tiny_source, "--to", "prepare"],
                env={**os.environ, "MOBILECLIP_TRACKING": "off", "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert f"run: process {os.getpid()} on host " in process.stderr.readline()
            assert process.poll() is None
            assert not (tmp_path / "runs" / "prepare").exists()
        process.communicate()
        assert process.returncode == 0
        assert (tmp_path / "runs" / "prepare" / "record.json").exists()

    def test_teachers_that_were_never_trained_are_no_input(self, capsys, tmp_path, tiny_reinforced):
        """A dataset alone is a root to distill from."""
        root = tmp_path / "runs"
        place = str(root / "calibrate")
        manifest.write(place, manifest.read(tiny_reinforced).moved(tiny_reinforced, place))
        params = tiny_chain.write_params(tmp_path / "params.yaml")
        arguments = ["--params", params, "--root", root, "--from", "distill", "--to", "distill"]
        assert _main(capsys, "run", *arguments)[0] == 0
        assert set(json.loads((root / "distill" / "record.json").read_text())["inputs"]) == {"data"}
        assert "all 1 stages are current" in _main(capsys, "run", *arguments)[2]


class TestTools:
    def test_params_prints_a_complete_file(self, capsys, params):
        assert _main(capsys, "params")[:2] == (0, render(config.Params()))
        _change(params, "shard_samples: 1000", "shard_samples: 5")
        assert "  shard_samples: 5  # Samples per shard." in _main(capsys, "params", params)[1].splitlines()

    def test_verify(self, capsys, tmp_path, tiny_reinforced, tiny_teachers):
        code, out, _ = _main(capsys, "verify", tiny_reinforced, "--teachers", tiny_teachers, "--samples", "2")
        assert code == 0
        assert json.loads(out)["samples"] == 40
        code, _, err = _main(capsys, "verify", tmp_path)
        assert (code, err.splitlines()[-1]) == (
            2,
            f"error: data: no manifest at '{tmp_path}/manifest.json', want the output folder of an earlier stage.",
        )
