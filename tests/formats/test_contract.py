"""The contract tells an app all it needs, survives a round trip, and refuses what is damaged or hostile."""

import dataclasses
import json

import pytest

from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats import contract
from mobileclip.formats import contract_writer as terms
from mobileclip.formats.digests import digest
from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution
from mobileclip.models import zoo


@pytest.fixture(scope="module")
def agreed(clip, written):
    return terms.agree(clip, list(written.values()), [], dataset_sha256="d" * 64)


@pytest.fixture
def saved(agreed, tmp_path):
    (tmp_path / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return tmp_path


def test_round_trip(agreed, saved):
    assert contract.read(saved) == agreed


def test_a_contract_of_before_attributions_still_reads(agreed):
    raw = json.loads(agreed.to_bytes())
    del raw["attributions"]
    assert contract.parse(json.dumps(raw).encode()).attributions == []


def test_a_student_that_records_nothing_tells_its_own_license(agreed, clip):
    (own,) = agreed.attributions
    assert (own.kind, own.license) == ("weights", clip.license)
    assert list(own.license_urls) == [clip.license]


def test_attributions_come_from_the_card_with_the_licenses_texts(clip, written):
    owed = [
        Attribution(kind="data", name="ann", license="CC-BY-SA-4.0", attribution="by Ann", url="https://ann.example"),
        Attribution(kind="teacher", name="t", license="MIT AND whatever"),
    ]
    carded = dataclasses.replace(clip, card={"model": "tiny-mci", **attribution.to_card(owed)})
    agreed = terms.agree(carded, list(written.values()), [], dataset_sha256="d" * 64)
    assert [Attribution(**one.model_dump(exclude={"license_urls"})) for one in agreed.attributions] == owed
    assert [one.license_urls for one in agreed.attributions] == [
        {"CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/"},
        {"MIT": "https://opensource.org/license/mit", "whatever": ""},
    ]
    assert agreed.lineage.card == {"model": "tiny-mci"}  # told once
    assert contract.parse(agreed.to_bytes()) == agreed


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"url": "javascript:alert(1)"}, "url"), ({"kind": "art"}, "kind"), ({"by": "x"}, "by"),
        ({"license_urls": {"MIT": "x"}}, "license_urls.MIT"),
    ],
)  # fmt: skip
def test_attributions_are_checked(agreed, change, place):
    raw = json.loads(agreed.to_bytes())
    raw["attributions"][0] |= change
    with pytest.raises(IntegrityError, match=rf"^contract\.json: attributions\.0\.{place}: .*\.$"):
        contract.parse(json.dumps(raw).encode())
    fields = json.loads(contract.schema())["$defs"]["Attribution"]["properties"]
    assert set(fields) == {"kind", "name", "license", "attribution", "url", "license_urls"}


def test_says_how_to_feed_the_student(agreed, clip):
    image, text = agreed.image, agreed.text
    assert (image.color_order, image.resize, image.interpolation) == ("RGB", "squash", clip.preprocess.interpolation)
    assert image.normalization_in_program
    assert (text.tokenizer, text.start_id, text.end_id, text.pad_id) == ("clip-bpe", 49406, 49407, 0)
    assert text.context_length == clip.model.context_length
    assert text.causal is (clip.model.text.attn_mask is not None)
    assert agreed.logit_scale == pytest.approx(clip.logit_scale)
    assert agreed.license == clip.license


def test_says_what_each_program_takes(agreed, clip):
    taken = {
        "image": ("image", "array", "float32", ["batch", 3, 64, 64], 0, 1),
        "text": ("text", "array", "int32", ["batch", clip.model.context_length], 0, 49407),
    }
    for program in agreed.programs:
        given, result = program.input, program.output
        found = (given.name, given.kind, given.dtype, given.shape, given.minimum, given.maximum)
        assert found == taken[program.tower]
        assert (result.name, result.shape) == (f"{program.tower}_features", ["batch", clip.embed_dim])
        assert result.unit_norm


def test_normalization_of_published_models_differs():
    # MobileCLIP2-S0 takes plain pixels, S4 OpenAI's statistics: the contract must not guess.
    means = {}
    for name in ("MobileCLIP2-S0", "MobileCLIP2-S3"):
        config = zoo.architecture(name)
        described = zoo.Clip(None, zoo.default_preprocess(name, config), None, config, name, "", "")
        means[name] = terms._image(described).mean
    assert means["MobileCLIP2-S0"] == [0, 0, 0]
    assert means["MobileCLIP2-S3"] == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "crop", "fill"), [("squash", "none", 0), ("shortest", "center", 0), ("longest", "none", 90)]
)
def test_says_how_the_student_is_shown_an_image(mode, crop, fill):
    config = zoo.architecture("tiny-mci")
    preprocess = dataclasses.replace(zoo.default_preprocess("tiny-mci", config), resize=mode, fill=fill)
    image = terms._image(zoo.Clip(None, preprocess, None, config, "tiny-mci", "", ""))
    assert (image.resize, image.crop, image.fill) == (mode, crop, fill)


def test_contracts_of_before_squash_and_a_crop_must_fit_the_resize(agreed):
    raw = json.loads(agreed.to_bytes())
    del raw["image"]["fill"], raw["image"]["resize"], raw["image"]["crop"]
    image = contract.parse(json.dumps(raw).encode()).image
    assert (image.resize, image.crop, image.fill) == ("squash", "none", 0)
    raw["image"]["resize"] = "shortest"
    with pytest.raises(IntegrityError, match="image: resize 'shortest' goes with crop 'center', got 'none'"):
        contract.parse(json.dumps(raw).encode())


def test_digests_are_the_files(agreed, folder):
    for program in agreed.programs:
        path = contract.check(folder, program)
        assert path.stat().st_size == program.bytes


def test_replaced_file_is_refused(agreed, folder, tmp_path):
    program = agreed.programs[0]
    (tmp_path / program.path).write_bytes((folder / program.path).read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="damaged or was replaced"):
        contract.check(tmp_path, program)
    with pytest.raises(IntegrityError, match="missing"):
        contract.check(tmp_path / "nowhere", program)


def test_missing_program_is_named(agreed):
    with pytest.raises(DataError, match=r"no onnx image program in int8, the export has image\.float32\.onnx"):
        agreed.program("image", precision="int8")


def test_damaged_contracts(agreed, saved, tmp_path):
    path = saved / contract.FILE_NAME
    with pytest.raises(DataError, match=r"no contract\.json"):
        contract.read(tmp_path / "nowhere")
    path.write_bytes(agreed.to_bytes()[:100])
    with pytest.raises(IntegrityError, match="not JSON"):
        contract.read(saved)
    path.write_text(json.dumps({**json.loads(agreed.to_bytes()), "schema_version": 99}))
    with pytest.raises(DataError, match=r"schema_version .* is 99, want 2: export it again\."):
        contract.read(saved)
    path.write_text(json.dumps({**json.loads(agreed.to_bytes()), "embed_dim": "wide"}))
    with pytest.raises(IntegrityError, match="embed_dim"):
        contract.read(saved)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"embed_dim": 64}, r"output of image\.float32\.onnx has the shape \['batch', 128\], want \['batch', 64\]"),
        ({"logit_scale": float("inf")}, "logit_scale"),
        ({"prompt_banks": [{"name": "a", "path": "prompts/a.safetensors", "labels": 1, "precision": "float16",
                            "budget": 0.1, "figures": {}}]}, r"prompts/a\.safetensors is not among the files"),
    ],
)  # fmt: skip
def test_contract_that_disagrees_with_itself(agreed, edit, sentence):
    raw = {**json.loads(agreed.to_bytes()), **edit}
    with pytest.raises(IntegrityError, match=sentence):
        contract.parse(json.dumps(raw).encode())


def test_file_listed_twice(agreed):
    raw = json.loads(agreed.to_bytes())
    raw["programs"].append(raw["programs"][0])
    with pytest.raises(IntegrityError, match=r"image\.float32\.onnx is listed more than once"):
        contract.parse(json.dumps(raw).encode())


def test_schema_names_every_key(agreed):
    described = json.loads(contract.schema())
    assert set(described["properties"]) == set(json.loads(agreed.to_bytes()))
    image = described["$defs"]["ImageContract"]["properties"]
    assert all("description" in image[key] for key in ("size", "crop", "interpolation", "orientation", "mean"))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../secret", "a/../../b", "c:\\windows", "", "a//b", "./a", "a\x00"]
)
def test_paths_out_of_the_folder_are_refused(agreed, saved, name):
    raw = json.loads(agreed.to_bytes())
    raw["programs"][0]["path"] = name
    (saved / contract.FILE_NAME).write_text(json.dumps(raw))
    with pytest.raises(IntegrityError, match="leads out of the folder"):
        contract.read(saved)


def test_folder_digest_covers_names_and_bytes(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a").write_bytes(b"12")
    first = digest(tmp_path / "package")
    (tmp_path / "package" / "a").rename(tmp_path / "package" / "b")
    second = digest(tmp_path / "package")
    assert first["bytes"] == second["bytes"] == 2
    assert first["sha256"] != second["sha256"]
