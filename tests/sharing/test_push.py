"""The push: what lands in the folder, what the card says, what is refused before anything is written."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import constants

from mobileclip.__main__ import main
from mobileclip.errors import ConfigError, IntegrityError, StorageError
from mobileclip.formats import contract
from mobileclip.sharing.push import gather, push, upload
from tests.exports import exported
from tests.sharing import hub

OPEN_CLIP = {
    "open_clip_config.json", "open_clip_model.safetensors", "model.json", "mobileclip_open_clip_support.py",
    "mobileclip_architectures.py", "mobileclip_text_repmixer.py",
}  # fmt: skip
JS = {
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "onnx/vision_model.onnx", "onnx/vision_model_fp16.onnx", "onnx/text_model.onnx", "onnx/text_model_fp16.onnx",
}  # fmt: skip
IMMICH = {
    "config.json", "visual/model.onnx", "visual/preprocess_cfg.json", "textual/model.onnx", "textual/tokenizer.json",
    "textual/tokenizer_config.json", "textual/special_tokens_map.json",
}  # fmt: skip


def test_the_root_of_a_run(tmp_path, capsys):
    out = tmp_path / "student"
    assert main(["push", str(exported().export.parent), str(out)]) == 0
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == OPEN_CLIP | JS | IMMICH | {"README.md"}
    assert f"{len(files)} files: {out}" in capsys.readouterr().out
    front, body = (out / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    stated = yaml.safe_load(front)
    assert stated["license"] == "cc-by-4.0"
    assert (stated["library_name"], stated["pipeline_tag"]) == ("open_clip", "zero-shot-image-classification")
    assert body.lstrip().startswith("# tiny-mci\n")
    assert "Drawings by Ann." in body
    assert "https://creativecommons.org/licenses/by/4.0" in body
    assert "import mobileclip_open_clip_support" in body
    assert exported().clip.sha256 in body


@pytest.mark.parametrize(
    ("model", "programs", "wanted", "files"),
    [
        ("checkpoint", "", (), OPEN_CLIP),
        ("bundle", "", (), JS | IMMICH),
        ("export", "", ("immich",), IMMICH),
        ("checkpoint", "bundle", ("open_clip", "transformers.js"), OPEN_CLIP | JS),
    ],
)
def test_parts(tmp_path, model, programs, wanted, files):
    found = exported()
    out = tmp_path / "out"
    listed = push(str(getattr(found, model)), str(out), programs=str(getattr(found, programs, "")), wanted=wanted)
    assert set(listed) == files | {"README.md"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Drawings by Ann." in card
    assert ("transformers.js\n" in card) == ("config.json" in files and "onnx/text_model.onnx" in files)


def test_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        push(str(exported().export.parent), str(tmp_path / name / "same"))
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "ab"
    )
    assert one == two


def test_a_license_that_the_hub_does_not_know(tmp_path):
    changed = tmp_path / "student"
    shutil.copytree(exported().checkpoint, changed)
    stated = json.loads((changed / "model.json").read_text())
    (changed / "model.json").write_text(json.dumps({**stated, "license": "CC-BY-4.0 AND apple-amlr"}))
    push(str(changed), str(tmp_path / "out"))
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "CC-BY-4.0 AND apple-amlr")


class TestRefusals:
    def test_places(self, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("mine")
        run = str(exported().export.parent)
        for to, sentence in [
            (str(tmp_path / "full"), r"full' is not empty, want a new or empty folder or hf-hub:OWNER/NAME\."),
            ("s3://bucket/x", r"got 's3://bucket/x', want a folder or hf-hub:OWNER/NAME\."),
            ("hf-hub:alone", r"got 'hf-hub:alone', want hf-hub:OWNER/NAME\."),
            ("hf-hub:a/..", r"got 'hf-hub:a/\.\.'"),
        ]:
            with pytest.raises(ConfigError, match=sentence):
                push(run, to)
        assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]

    def test_what_is_missing(self, tmp_path):
        found = exported()
        for model, programs, wanted, sentence in [
            (str(tmp_path), "", (), "got '.+', want a student's folder"),
            (str(found.checkpoint), str(tmp_path), (), "programs: got '.+', want a bundle or an export folder"),
            (str(found.checkpoint), "", ("immich",), "got 'immich' without what it is made of, want --programs"),
            (
                str(found.bundle),
                "",
                ("open_clip",),
                "got 'open_clip' without what it is made of, want a student's folder",
            ),
            (str(found.bundle), "", ("coreml",), "got 'coreml', want some of open_clip, transformers.js, immich"),
        ]:
            with pytest.raises(ConfigError, match=sentence):
                push(model, str(tmp_path / "out"), programs=programs, wanted=wanted)
        assert not (tmp_path / "out").exists()

    def test_another_student(self, tmp_path):
        other = tmp_path / "student"
        shutil.copytree(exported().checkpoint, other)
        data = bytearray((other / "open_clip_model.safetensors").read_bytes())
        data[-1] ^= 1
        (other / "open_clip_model.safetensors").write_bytes(bytes(data))
        with pytest.raises(IntegrityError, match=r"weights have sha256 .+, their card promises"):
            gather(str(other))
        stated = json.loads((other / "model.json").read_text())
        del stated["sha256"]
        (other / "model.json").write_text(json.dumps(stated))
        with pytest.raises(IntegrityError, match=r"the programs were made from .+: want the student that was exported"):
            gather(str(other), str(exported().bundle))

    def test_a_replaced_program(self, tmp_path):
        shutil.copytree(exported().export, tmp_path / "export")
        (tmp_path / "export" / "image.float32.onnx").write_bytes(b"x")
        with pytest.raises(IntegrityError, match=r"image\.float32\.onnx: sha256"):
            push(str(tmp_path / "export"), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        assert contract.read(tmp_path / "export").programs

    def test_a_hub_that_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        (tmp_path / "README.md").write_text("x")
        with pytest.raises(StorageError, match="push: the hub refuses 'owner/name'"):
            upload(tmp_path, "owner/name")


class TestHub:
    """huggingface_hub's own client against a stand-in: the hub itself cannot be reached from a test."""

    def test_what_is_committed_is_what_a_folder_gets(self, tmp_path, monkeypatch):
        with hub.serving() as (address, repositories, files):
            monkeypatch.setattr(constants, "ENDPOINT", address)
            listed = push(str(exported().export), "hf-hub:owner/name", wanted=["immich"], private=True)
        assert [(r["organization"], r["name"]) for r in repositories] == [("owner", "name")]
        assert (
            repositories[0].get("private") or repositories[0]["visibility"] == "private"
        )  # by the version of the client
        push(str(exported().export), str(tmp_path / "name"), wanted=["immich"])
        assert sorted(files) == listed
        for name, data in files.items():
            assert name == "README.md" or data == (tmp_path / "name" / name).read_bytes()

    def test_a_hub_that_refuses(self, tmp_path, monkeypatch):
        (tmp_path / "README.md").write_text("x")
        with hub.serving(status=403) as (address, _, files):
            monkeypatch.setattr(constants, "ENDPOINT", address)
            with pytest.raises(StorageError, match=r"^push: the hub refuses 'owner/name': .*403"):
                upload(tmp_path, "owner/name")
        assert files == {}
