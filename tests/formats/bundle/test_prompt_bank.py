"""A stored bank classifies as the text tower does; what is lost by storing it is measured, and bounded."""

import json

import numpy as np
import pytest

from mobileclip.errors import DataError, ExportError, IntegrityError
from mobileclip.formats import contract
from mobileclip.formats.bundle import prompt_bank

LABELS = ["red", "green", "blue {}", "wide", "京"]
TEMPLATES = ["a {} pattern", "{}"]
LIMITS = {"float32": 1e-6, "float16": 3e-3, "int8": 0.05}


@pytest.fixture(scope="module")
def bank(clip):
    return prompt_bank.embed(lambda texts: clip.encode_text(texts).numpy(), LABELS, TEMPLATES)


def test_it_is_the_mean_of_the_prompts(clip, bank):
    for index, label in enumerate(LABELS):
        each = clip.encode_text([f"a {label} pattern", label]).numpy()
        mean = each.mean(0) / np.linalg.norm(each.mean(0))
        np.testing.assert_allclose(bank.features[index], mean, atol=1e-6)


@pytest.mark.parametrize("precision", LIMITS)
def test_stored_and_read_again(bank, reference, tmp_path, precision):
    described, paths = prompt_bank.build(
        bank, reference.image_features, tmp_path, name="colors", precision=precision, budget=LIMITS[precision]
    )
    again = prompt_bank.read(paths[0])
    assert (again.labels, again.templates) == (LABELS, TEMPLATES)
    assert described.path == "prompts/colors.safetensors"
    assert described.figures["error"] <= LIMITS[precision]
    np.testing.assert_allclose(np.linalg.norm(again.features, axis=1), 1, atol=1e-6)
    spread = np.linalg.norm(bank.features - bank.features.mean(0))
    assert described.figures["error"] == pytest.approx(np.linalg.norm(again.features - bank.features) / spread)


def test_narrower_precisions_shrink_the_file_and_lose_more(bank, reference, tmp_path):
    sizes, errors = [], []
    for precision in LIMITS:
        described, paths = prompt_bank.build(
            bank, reference.image_features, tmp_path / precision, name="a", precision=precision, budget=1
        )
        sizes.append(paths[0].stat().st_size)
        errors.append(described.figures["error"])
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[2] > errors[1] > errors[0]


def test_same_bytes_twice(bank, tmp_path):
    first = prompt_bank.write(bank, tmp_path / "a", name="x", precision="int8")
    second = prompt_bank.write(bank, tmp_path / "b", name="x", precision="int8")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_over_its_budget(bank, reference, tmp_path):
    with pytest.raises(ExportError, match=r"'colors' in int8 has error 0\.0.* its budget is 1e-09; nothing"):
        prompt_bank.build(bank, reference.image_features, tmp_path, name="colors", precision="int8", budget=1e-9)


def test_agreement_counts_changed_answers():
    wanted = np.eye(3, dtype=np.float32)
    figures = prompt_bank.prove(wanted[[1, 0, 2]], wanted, wanted)
    assert figures["agreement"] == pytest.approx(1 / 3)
    assert figures["cosine_min"] == 0


@pytest.mark.parametrize(("labels", "sentence"), [([], "got none"), (["a", "b", "a"], "got 'a' twice")])
def test_wrong_labels(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        prompt_bank.embed(lambda texts: np.ones((len(texts), 4), np.float32), labels, ["{}"])


@pytest.fixture
def exported(clip, bank, reference, tmp_path):
    from mobileclip.formats import contract_writer as terms

    described, paths = prompt_bank.build(
        bank, reference.image_features, tmp_path, name="colors", precision="float16", budget=0.1
    )
    files = [contract.describe(path, root=tmp_path) for path in paths]
    agreed = terms.agree(clip, [], files, dataset_sha256="d" * 64).model_copy(update={"prompt_banks": [described]})
    return tmp_path, contract.parse(agreed.to_bytes())


def test_load_checks_the_bytes(exported, bank):
    folder, agreed = exported
    np.testing.assert_allclose(prompt_bank.load(folder, agreed, "colors").features, bank.features, atol=1e-3)
    with pytest.raises(DataError, match="got 'shapes', the export has colors"):
        prompt_bank.load(folder, agreed, "shapes")
    path = folder / "prompts" / "colors.json"
    path.write_text(path.read_text().replace("red", "bad"))
    with pytest.raises(IntegrityError, match=r"prompts/colors\.json: sha256"):
        prompt_bank.load(folder, agreed, "colors")


def test_damaged_files(bank, tmp_path):
    data, about = prompt_bank.write(bank, tmp_path, name="x", precision="float32")
    about.write_text(json.dumps({"labels": ["one"], "templates": [], "precision": "float32"}))
    with pytest.raises(IntegrityError, match="5 embeddings for 1 labels"):
        prompt_bank.read(data)
    data.write_bytes(data.read_bytes()[:50])
    with pytest.raises(IntegrityError, match="damaged"):
        prompt_bank.read(data)
    with pytest.raises(DataError, match=r"no 'y\.safetensors'"):
        prompt_bank.read(tmp_path / "y.safetensors")
