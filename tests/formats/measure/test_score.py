"""Exported programs are scored as evaluate scores the student, and next to it."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from mobileclip import manifest
from mobileclip.__main__ import main
from mobileclip.config import Classification, Evaluate
from mobileclip.errors import DataError
from mobileclip.evaluation.assess import assess
from mobileclip.evaluation.features import embed_split
from mobileclip.formats import contract, load
from mobileclip.formats import contract_writer as terms
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.measure import score
from mobileclip.models import zoo

CONFIG = Evaluate(
    split="train",
    classifications=[Classification(field="subgroup", templates=["a {}", "{}"])],
    bootstrap=50,
    batch_size=16,
)


@pytest.fixture(scope="module")
def export(clip, written, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    kept = [
        p
        for p in written.values()
        if (p.tower, p.precision) in {("image", "float32"), ("text", "float32"), ("text", "int8")}
    ]
    for program in kept:
        shutil.copyfile(folder / program.path, out / program.path)
    files = [contract.describe(path, root=out) for path in tokenizer.write(clip.tokenizer, out / tokenizer.FOLDER)]
    agreed = terms.agree(clip, kept, files, dataset_sha256="d" * 64)
    (out / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return out


@pytest.fixture(scope="module")
def found(export, clip, tiny_data):
    return score.score(load(export, threads=1), tiny_data, manifest.read(tiny_data), CONFIG, student=clip)


def test_pytorch_column_is_evaluates(found, clip, tiny_data):
    content = manifest.read(tiny_data)
    models = {"student": clip}
    whole = assess(models, embed_split(models, tiny_data, content, split="train", batch_size=16), CONFIG)
    wanted = {name: row["student"] for name, row in whole.scopes[0].table.items()}
    assert found["samples"] == 32
    assert {name: row[score.PYTORCH] for name, row in found["metrics"].items()} == wanted
    assert {"retrieval/mean/r1", "zero_shot/subgroup/top1", "retrieval/i2t/median_rank"} <= set(wanted)


def test_float32_programs_score_as_pytorch(found):
    for name, row in found["metrics"].items():
        if not name.endswith("ece"):
            assert row["delta"]["value"] == pytest.approx(0, abs=1 / 32 + 1e-6), name
    assert found["metrics"]["zero_shot/subgroup/top1"]["delta"]["verdict"] == "no evidence"


def test_int8_differs_and_has_an_interval(export, tiny_data):
    programs = load(export, text="int8", threads=1)
    alone = score.score(programs, tiny_data, manifest.read(tiny_data), CONFIG)
    row = alone["metrics"]["retrieval/mean/r5"]
    assert row[score.PROGRAM]["low"] <= row[score.PROGRAM]["value"] <= row[score.PROGRAM]["high"]
    assert score.PYTORCH not in row


def test_single_program_is_refused(export, tiny_data):
    with pytest.raises(DataError, match="has no contract"):
        score.score(load(export / "text.float32.onnx"), tiny_data, manifest.read(tiny_data), CONFIG)


def test_another_student_is_no_measure(export, clip, tiny_data):
    """The difference to a control, say, would be told as the exported program's."""
    programs = load(export)
    lineage = programs.contract.lineage.model_copy(update={"student_sha256": "ab" * 32})
    exported = replace(programs, contract=programs.contract.model_copy(update={"lineage": lineage}))
    other = replace(clip, sha256="cd" * 32)
    with pytest.raises(DataError, match="have sha256 cdcdcdcdcdcd, the programs were made from abababababab"):
        score.score(exported, tiny_data, manifest.read(tiny_data), CONFIG, student=other)
    same = replace(clip, sha256="ab" * 32)
    assert score.score(exported, tiny_data, manifest.read(tiny_data), CONFIG, student=same)["samples"] == 32


def test_split_without_samples(export, tiny_source, tiny_data):
    empty = CONFIG.model_copy(update={"split": "nothing"})
    with pytest.raises(DataError, match="has no samples of split 'nothing'"):
        score.score(load(export), tiny_data, manifest.read(tiny_data), empty)


def test_command(export, clip, tiny_data, tmp_path, capsys):
    zoo.save(str(tmp_path / "distill" / "student"), clip, license="x", card={"model": "tiny-mci"})
    from mobileclip.config import Params

    values = Params().model_dump(mode="json") | {"evaluate": CONFIG.model_dump(mode="json")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    code = main([
        "score", str(export), "--data", tiny_data, "--student", str(tmp_path / "distill"), "--text", "int8",
        "--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "scores.json"),
    ])  # fmt: skip
    assert code == 0
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (
        written["metrics"]["retrieval/mean/r1"]["delta"]["low"]
        <= 0
        <= written["metrics"]["retrieval/mean/r1"]["delta"]["high"]
    )
    assert "zero_shot/subgroup/top1" in capsys.readouterr().out
