"""The stage: real samples through the whole export, the same bytes twice, nothing left behind when it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mobileclip import entry, manifest, storage
from mobileclip.config import Export, LabelBank, Prepare
from mobileclip.data.shards import read_samples
from mobileclip.errors import ConfigError, DataError, ExportError, IntegrityError
from mobileclip.formats import contract, programs, runtime
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import prompt_bank, tokenizer
from mobileclip.models import zoo
from mobileclip.stages import export
from mobileclip.tracking.protocol import LogTracker
from tests import s3
from tests.models.perturbed import patterned_images, perturbed_clip

SECTION = Export(samples=6, latency_runs=2, zero_shot_field="")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "raw").mkdir()
    rows = []
    for index, picture in enumerate((patterned_images(8, 50, seed=2) * 255).to(torch.uint8)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(root / "raw" / f"{index}.png")
        rows.append({"image": f"{index}.png", "captions": [f"pattern {index}"], "split": "test"})
    (root / "raw" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry.run_stage("prepare", Prepare(), out=root / "prepare", source=root / "raw")
    return root / "prepare"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    clip = perturbed_clip("tiny-mci")
    zoo.save(str(folder / "student"), clip, license="CC0-1.0", card={"model": "tiny-mci"})
    return folder


@pytest.fixture(scope="module")
def exported(data, student, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "export"
    metrics = export.run(SECTION, out=str(out), tracker=LogTracker(), student=str(student), data=str(data))
    return out, metrics


def test_programs_run_from_the_folder_alone(exported, data, student):
    out, _ = exported
    programs = runtime.load(out)
    sample = next(read_samples(str(data), manifest.read(str(data)), "test"))
    clip = zoo.load("trained:student", trained=str(student))
    tokens = tokenizer.load(out / tokenizer.FOLDER)(sample.captions)
    np.testing.assert_allclose(programs.encode_text(tokens), clip.encode_text(sample.captions).numpy(), atol=1e-5)


def test_contract_lists_every_file_with_its_digest(exported, data, student):
    out, _ = exported
    agreed = contract.read(out)
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    listed = {file.path for file in (*agreed.programs, *agreed.files)}
    assert present == listed | {contract.FILE_NAME, "timings.json"}
    for file in (*agreed.programs, *agreed.files):
        contract.check(out, file)
    weights = student / "student" / zoo.WEIGHTS_FILE
    assert agreed.lineage.student_sha256 == storage.digest_file(weights)
    assert agreed.lineage.dataset_sha256 == manifest.read(str(data)).digest()
    assert (agreed.model, agreed.license) == ("tiny-mci", "CC0-1.0")


def test_metrics_and_proof(exported):
    out, metrics = exported
    proof = json.loads((out / "proof.json").read_text())
    assert metrics["programs"] == 2
    assert metrics["onnx/image/float32/error"] < 1e-4
    assert metrics["onnx/text/float32/agreement"] == 1
    assert proof["samples"] == 6
    figures = proof["programs"]["image.float32.onnx"]
    assert figures["executed"] is True
    assert figures["error"] == metrics["onnx/image/float32/error"] <= figures["budget"]


def test_timings_lie_apart(exported):
    timings = json.loads((exported[0] / "timings.json").read_text())
    for threads in ("threads_1", "threads_2"):
        measured = timings["image"][threads]
        assert measured["eager"]["ratio"] == 1
        assert 0 < measured["image.float32.onnx"]["p50_ms"] <= measured["image.float32.onnx"]["p95_ms"]
        assert "text.float32.onnx" in timings["text"][threads]
        assert measured["image.float32.onnx"]["ratio_onnx"] == 1
        assert measured["eager"]["ratio_onnx"] > 0
        assert "ONNX float32" not in measured


def test_other_formats_are_timed_beside_onnx(data, student, tmp_path):
    """Without an ONNX program in the export."""
    section = SECTION.model_copy(update={"formats": ["executorch"], "latency_runs": 1})
    export.run(section, out=str(tmp_path), tracker=LogTracker(), student=str(student), data=str(data))
    timings = json.loads((tmp_path / "timings.json").read_text())
    for tower in ("image", "text"):
        for threads in ("threads_1", "threads_2"):
            assert set(timings[tower][threads]) == {"eager", f"{tower}.float32.pte"}
            assert timings[tower][threads][f"{tower}.float32.pte"]["ratio_onnx"] > 0
    assert not list(tmp_path.glob("*.onnx"))
    assert {program.format for program in contract.read(tmp_path).programs} == {"executorch"}


def test_prompt_banks_and_bundle(data, student, tmp_path):
    banks = [
        {"name": "patterns", "field": "split", "precision": "int8", "max_error": 1.0},
        {"name": "colors", "labels": ["red", "green", "blue"], "templates": ["a {} picture", "{}"]},
    ]
    section = Export.model_validate(
        {**SECTION.model_dump(), "latency_runs": 0, "prompt_banks": banks, "bundle": "programs", "bundle_version": "7"}
    )
    out = tmp_path / "out"
    metrics = export.run(section, out=str(out), tracker=LogTracker(), student=str(student), data=str(data))
    assert metrics["prompt_bank/colors/labels"] == 3
    assert metrics["prompt_bank/colors/error"] <= metrics["prompt_bank/colors/budget"] == 0.01
    path = out / "mobileclip-tiny-mci-7.zip"
    agreed = bundle.verify(path)
    assert agreed == contract.read(out)
    assert [b.path for b in agreed.prompt_banks] == ["prompts/patterns.safetensors", "prompts/colors.safetensors"]
    clip = zoo.load("trained:student", trained=str(student))
    stored = prompt_bank.load(out, agreed, "colors")
    wanted = prompt_bank.embed(lambda texts: clip.encode_text(texts).numpy(), stored.labels, stored.templates)
    np.testing.assert_allclose(stored.features, wanted.features, atol=1e-3)
    assert prompt_bank.load(out, agreed, "patterns").labels == ["test"]


def test_documented_banks_are_valid_and_a_missed_budget_costs_no_program(data, student, tmp_path, monkeypatch):
    (block,) = re.findall(
        r"```yaml\n(export:\n  prompt_banks:.*?)```",
        (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(),
        re.DOTALL,
    )
    banks = yaml.safe_load(block)["export"]["prompt_banks"]
    assert all(set(bank) == set(LabelBank.model_fields) for bank in banks)  # a params file wants every key
    section = Export.model_validate({**SECTION.model_dump(), "latency_runs": 0, "prompt_banks": banks[1:]})
    out, run = str(tmp_path / "out"), {"tracker": LogTracker(), "student": str(student), "data": str(data)}
    assert export.run(section, out=out, **run)["prompt_bank/food/labels"] == 3
    tight = section.prompt_banks[0].model_copy(update={"max_error": 1e-6})
    monkeypatch.setattr(programs, "build", lambda *_, **__: pytest.fail("programs were written first"))
    with pytest.raises(ExportError, match="prompt bank 'food' in int8 has error"):
        export.run(section.model_copy(update={"prompt_banks": [tight]}), out=str(tmp_path / "none"), **run)
    assert not (tmp_path / "none").exists()


def test_page_without_a_program_that_it_runs(data, student, tmp_path):
    section = SECTION.model_copy(update={"formats": ["executorch"], "bundle": "page"})
    with pytest.raises(ConfigError, match=r"export\.bundle: got 'page' with formats \['executorch'\], want 'onnx'"):
        export.run(section, out=str(tmp_path / "out"), tracker=LogTracker(), student=str(student), data=str(data))


def test_bank_without_labels(data, student, tmp_path):
    section = Export.model_validate({**SECTION.model_dump(), "latency_runs": 0, "prompt_banks": [{"name": "a"}]})
    with pytest.raises(ConfigError, match=r"export\.prompt_banks\.0: got neither of labels and field, want one"):
        export.run(section, out=str(tmp_path / "out"), tracker=LogTracker(), student=str(student), data=str(data))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_programs_for_executorch_with_core_ml(data, student, tmp_path):
    """Two formats whose suffixes end alike, written, bundled and run side by side."""
    asked = {"formats": ["executorch", "executorch_coreml"], "precisions": ["float32", "float16"], "latency_runs": 1}
    section = Export.model_validate({**SECTION.model_dump(), **asked, "bundle": "programs", "bundle_version": "7"})
    out = tmp_path / "out"
    metrics = export.run(section, out=str(out), tracker=LogTracker(), student=str(student), data=str(data))
    agreed = bundle.verify(out / "mobileclip-tiny-mci-7.zip")
    executed = {program.path: program.executed for program in agreed.programs}
    assert executed == {
        "image.float32.pte": True, "text.float32.pte": True, "text.float16.pte": True,
        **{f"{t}.{p}.coreml.pte": False for t in ("image", "text") for p in ("float32", "float16")},
    }  # fmt: skip
    assert not [name for name in (out / "timings.json").read_text().split('"') if name.endswith(".coreml.pte")]
    assert metrics["executorch_coreml/image/float16/delegated"] == 1
    assert metrics["executorch_coreml/text/float32/error"] < 1e-4 > metrics["executorch/text/float32/error"]
    assert {"executorch", "coremltools"} <= set(agreed.versions)
    programs = runtime.load(out, format="executorch_coreml", image="float16", text="float16")
    sample = next(read_samples(str(data), manifest.read(str(data)), "test"))
    clip = zoo.load("trained:student", trained=str(student))
    tokens = tokenizer.load(out / tokenizer.FOLDER)(sample.captions)
    np.testing.assert_allclose(programs.encode_text(tokens), clip.encode_text(sample.captions).numpy(), atol=5e-3)


_AGAIN = """
import sys
from mobileclip.config import Export
from mobileclip.tracking.protocol import LogTracker
from mobileclip.stages import export
out, student, data = sys.argv[1:]
section = Export(samples=6, latency_runs=0, zero_shot_field="")
export.run(section, out=out, tracker=LogTracker(), student=student, data=data)
"""


def test_another_process_gives_the_same_bytes_and_drops_what_is_stale(exported, data, student, tmp_path, request):
    out, _ = exported
    theirs = out / "mobileclip-theirs-1.zip"  # what the stage did not write stays
    theirs.write_bytes(b"a bundle that somebody keeps here")
    request.addfinalizer(theirs.unlink)
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "timings.json"}
    stale, package = out / "image.float16.onnx", out / "image.float16.mlpackage"
    stale.write_bytes(b"old")
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights.bin").write_bytes(b"old")
    old = contract.read(out)
    files = [*old.files, *(contract.describe(path, root=out) for path in (stale, package))]
    (out / contract.FILE_NAME).write_bytes(old.model_copy(update={"files": files}).to_bytes())
    command = [sys.executable, "-c", _AGAIN, str(out), str(student), str(data)]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(request.config.rootpath)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    after = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "timings.json"}
    assert before == after
    assert not package.exists()


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path, monkeypatch):
    if request.param == "local":
        return str(tmp_path / "out")
    s3.use(monkeypatch, MOBILECLIP_CACHE=str(tmp_path / "cache"))
    return s3.bucket(f"export-{tmp_path.name.replace('_', '-').lower()}"[:63].rstrip("-")) + "/out"


def test_packages_are_replaced_whole(exported, out, tmp_path):
    """A file that an earlier package held, or a killed export left in it, would break the digest of the new one."""

    def publish(*names):
        folder = tmp_path / "-".join(names)
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        files = [contract.describe(path, root=folder) for path in sorted(folder.iterdir())]
        agreed = contract.read(exported[0]).model_copy(update={"programs": [], "files": files})
        export._publish(out, folder, agreed)
        return agreed

    publish("image.mlpackage/Manifest.json", "image.mlpackage/Data/old.bin", "text.mlpackage/a", "text.onnx")
    storage.write_bytes(storage.join(out, "mobileclip-tiny-mci-1.zip"), b"old")
    storage.write_bytes(storage.join(out, "image.mlpackage/Data/killed.bin"), b"left")
    storage.write_bytes(storage.join(out, "timings.json"), b"{}")
    record = storage.join(out, contract.FILE_NAME)
    # A contract of another version says as well what it left.
    raw = json.loads(storage.read_bytes(record)) | {"schema_version": 0}
    storage.write_bytes(record, json.dumps(raw).encode())
    agreed = publish("image.mlpackage/Manifest.json", "text.onnx")
    # The zip is not in what the earlier export says that it wrote: somebody put it there.
    left = ["image.mlpackage/Manifest.json", "mobileclip-tiny-mci-1.zip", "text.onnx", "timings.json"]
    assert storage.list_files(out) == [contract.FILE_NAME, *left]
    with storage.fetched(out) as root:
        for file in agreed.files:
            contract.check(root, file)


def test_missed_budget_publishes_nothing(data, student, tmp_path):
    section = SECTION.model_copy(update={"max_error_float32": 1e-12})
    with pytest.raises(ExportError, match=r"'image\.float32\.onnx' has error .* its budget is 1e-12") as raised:
        export.run(section, out=str(tmp_path / "out"), tracker=LogTracker(), student=str(student), data=str(data))
    assert raised.value.exit_code == 1
    assert not (tmp_path / "out").exists()


class _Recorder(LogTracker):
    """Keeps what a stage records, as an MLflow run would."""

    def __init__(self):
        self.files = {}

    def log_file(self, path, *, folder=""):
        self.files[f"{folder}/{os.path.basename(path)}"] = open(path, "rb").read()  # noqa: PTH119, PTH123, SIM115


def _int8(out, data, student, budget, tracker=None):
    section = SECTION.model_copy(
        update={
            "samples": 4, "calibration_split": "test", "calibration_samples": 4, "latency_runs": 0,
            "precisions": ["float32", "int8_weights"], "max_error_int8": budget,
        }
    )  # fmt: skip
    return export.run(section, out=out, tracker=tracker or LogTracker(), student=str(student), data=str(data))


def test_layer_report_outlives_the_export_that_failed(exported, data, student, out):
    for path in (p for p in exported[0].rglob("*") if p.is_file()):
        storage.write_bytes(storage.join(out, path.relative_to(exported[0]).as_posix()), path.read_bytes())
    before, place, tracker = storage.list_files(out), storage.join(out, "layers-refused.json"), _Recorder()
    with pytest.raises(ExportError, match=r"'image\.int8_weights\.onnx' has error .* budget is 1e-05 ") as raised:
        _int8(out, data, student, 1e-5, tracker)
    assert f"(11 of 23 were kept in float, all are listed in '{place}'); nothing was published." in str(raised.value)
    table = json.loads(storage.read_bytes(place))
    assert tracker.files == {"export/layers-refused.json": storage.read_bytes(place)}
    assert len(table["layers"]) == 23
    assert sum(row["kept"] for row in table["layers"]) == 11
    assert all(row["layer"] in str(raised.value) for row in table["layers"][:3])
    # The export that was there is still whole.
    assert storage.list_files(out) == sorted([*before, "layers-refused.json"])
    with storage.fetched(out) as root:
        for file in (*(agreed := contract.read(root)).programs, *agreed.files):
            contract.check(root, file)
        runtime.load(root)
        bundle.verify(bundle.write(root, root, version="1"))
    # The next attempt takes the report away.
    _int8(out, data, student, 0.5)
    assert not storage.exists(place)
    assert storage.exists(storage.join(out, "image.int8_weights.onnx"))


def test_failed_first_export_is_none(data, student, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"layers-refused\.json"):
        _int8(str(out), data, student, 1e-5)
    assert [path.name for path in out.iterdir()] == ["layers-refused.json"]
    with pytest.raises(DataError, match=r"no contract\.json"):
        runtime.load(out)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("formats", ["tflow"], r"export\.formats\.0: got 'tflow'"),
        ("formats", [], r"export\.formats"),
        ("precisions", ["int3"], r"export\.precisions\.0: got 'int3'"),
        ("max_error_float32", 0, r"export\.max_error_float32: got 0, input should be greater than 0"),
        ("opset", 18, r"export\.opset: got 18"),
        ("samples", 1, r"export\.samples: got 1"),
    ],
)
def test_wrong_keys(data, student, tmp_path, key, value, sentence):
    section = {**SECTION.model_dump(mode="json"), key: value}
    with pytest.raises(ConfigError, match=sentence) as raised:
        entry.run_stage("export", section, out=tmp_path / "out", data=data, student=student)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_int8_alone_is_no_export(data, student, tmp_path):
    section = SECTION.model_copy(update={"precisions": ["int8"]})
    with pytest.raises(ConfigError, match=r"export\.precisions: got \['int8'\]"):
        export.run(section, out=str(tmp_path / "out"), tracker=LogTracker(), student=str(student), data=str(data))


def test_fine_tuning_may_not_see_the_samples_of_the_proof(data, student, tmp_path):
    section = SECTION.model_copy(update={"qat_steps": 3, "calibration_split": "test"})
    with pytest.raises(ConfigError, match=r"export\.qat_steps: got 3 while split and calibration_split are both"):
        export.run(section, out=str(tmp_path / "out"), tracker=LogTracker(), student=str(student), data=str(data))
    assert not (tmp_path / "out").exists()


def _run(data, student, out):
    return export.run(SECTION, out=str(out), tracker=LogTracker(), student=str(student), data=str(data))


def test_split_without_samples(data, student, tmp_path):
    section = SECTION.model_copy(update={"split": "validation"})
    with pytest.raises(DataError, match=r"export\.split: 'validation' has 0 samples"):
        export.run(section, out=str(tmp_path / "out"), tracker=LogTracker(), student=str(student), data=str(data))


def test_damaged_and_foreign_checkpoints(data, student, tmp_path):
    weights = (student / "student" / zoo.WEIGHTS_FILE).read_bytes()

    def checkpoint(name, content):
        folder = tmp_path / name / "student"
        folder.mkdir(parents=True)
        for path in (student / "student").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / zoo.WEIGHTS_FILE).write_bytes(content)
        return tmp_path / name

    flipped = bytearray(weights)
    flipped[-1] ^= 1
    other = zoo.create("tiny-coca")
    zoo.save(str(tmp_path / "foreign" / "student"), other, license="x", card={})
    out = tmp_path / "out"
    cases = [
        (tmp_path / "empty", DataError, "no checkpoint"),
        (checkpoint("cut", weights[:-1000]), DataError, "is damaged or holds no weights"),
        (checkpoint("flipped", bytes(flipped)), IntegrityError, "model.json promises"),
        (checkpoint("junk", b"not safetensors"), DataError, "does not fit .*: 15 bytes, want"),
        (tmp_path / "foreign", ConfigError, "captioner"),
    ]
    for folder, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            _run(data, folder, out)
        assert not out.exists()
