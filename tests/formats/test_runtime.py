"""What an app calls: one interface over any program, wrong inputs refused in one sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.formats import contract, runtime
from mobileclip.formats import contract_writer as terms
from mobileclip.formats.program_ports import Port


@pytest.fixture(scope="module")
def exported(clip, written, folder):
    agreed = terms.agree(clip, list(written.values()), [], dataset_sha256="d" * 64)
    (folder / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return folder


@pytest.mark.parametrize(("image", "text"), [("float32", "float32"), ("float16", "int8")])
def test_folder(exported, reference, image, text):
    programs = runtime.load(exported, image=image, text=text, threads=1)
    got = programs.encode_image(reference.pixels) @ programs.encode_text(reference.tokens).T
    np.testing.assert_allclose(got, reference.image_features @ reference.text_features.T, atol=0.05)
    assert programs.contract.embed_dim == 128


def test_running_programs_needs_no_torch(exported, reference):
    code = """
import sys
import numpy as np
from mobileclip.formats import load
programs = load(sys.argv[1])
programs.encode_text(np.zeros((1, int(sys.argv[2])), np.int32))
assert not {"torch", "onnx", "open_clip"} & set(sys.modules), sorted(sys.modules)
"""
    command = [sys.executable, "-c", code, str(exported), str(reference.tokens.shape[1])]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_single_program(exported, reference):
    programs = runtime.load(exported / "text.float32.onnx")
    np.testing.assert_allclose(programs.encode_text(reference.tokens), reference.text_features, atol=1e-5)
    with pytest.raises(DataError, match="is no image program"):
        programs.encode_image(reference.pixels)


def test_wrong_inputs(exported, reference):
    programs = runtime.load(exported)
    pixels, tokens = reference.pixels, reference.tokens
    wrong = [
        (programs.encode_image, (pixels * 255).astype(np.uint8), "got uint8, want RGB divided by 255"),
        (programs.encode_image, pixels * 255, "want RGB in 0-1"),
        (programs.encode_image, pixels - 0.5, "not normalized"),
        (programs.encode_image, pixels * np.nan, "want RGB in 0-1"),
        (programs.encode_image, pixels.transpose(0, 2, 3, 1), r"want \['batch', 3, 64, 64\]"),
        (programs.encode_image, pixels[0], "got shape"),
        (programs.encode_image, pixels[:0], "got shape"),
        (programs.encode_text, tokens[:, :10], "got shape"),
        (programs.encode_text, tokens.astype(np.float32), "want token ids"),
    ]
    for call, value, sentence in wrong:
        with pytest.raises(DataError, match=sentence):
            call(value)


def test_wider_integers_are_taken(exported, reference):
    programs = runtime.load(exported)
    np.testing.assert_array_equal(
        programs.encode_text(reference.tokens.astype(np.int64)), programs.encode_text(reference.tokens)
    )


def test_threads_below_none(exported):
    with pytest.raises(ConfigError, match=r"^programs: threads: got -3, want 0 \(the runtime's choice\) or more\.$"):
        runtime.load(exported, threads=-3)


def test_unknown_files(tmp_path, exported):
    (tmp_path / "image.bin").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"'image\.bin' is of no known format, want \.aimodel, \.coreml\.pte, \.mlpackage, \.onnx"
    ):
        runtime.load(tmp_path / "image.bin")
    with pytest.raises(DataError, match="no onnx text program in int4"):
        runtime.load(exported, text="int4")
    with pytest.raises(DataError, match=r"no contract\.json"):
        runtime.load(tmp_path)


def test_replaced_program_is_refused(exported, tmp_path):
    for path in exported.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "text.float32.onnx").write_bytes((exported / "text.float16.onnx").read_bytes())
    with pytest.raises(IntegrityError, match=r"text\.float32\.onnx: sha256"):
        runtime.load(tmp_path)


def test_program_that_is_not_what_the_contract_states(exported, tmp_path):
    """Digests agree, but the contract was written by hand: a client would feed what the program does not take."""
    for path in exported.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((exported / contract.FILE_NAME).read_text())
    for program in raw["programs"]:
        if program["path"] == "image.float32.onnx":
            program["input"] |= {"kind": "picture", "dtype": "uint8", "maximum": 255}
    (tmp_path / contract.FILE_NAME).write_text(json.dumps(raw))
    sentence = (
        r"image\.float32\.onnx: the program takes image float32 \[batch, 3, 64, 64\], "
        r"its contract states image picture uint8 \[batch, 3, 64, 64\]"
    )
    with pytest.raises(IntegrityError, match=sentence):
        runtime.load(tmp_path)


def test_fixed_batches_are_filled_and_cut(tmp_path):
    seen = []

    def execute(rows):
        seen.append(len(rows))
        return rows.astype(np.float32)

    encode = runtime.Encoder(tmp_path, Port("text", "int32", (4, 2)), Port("text_features", "float32", (4, 2)), execute)
    rows = np.arange(12, dtype=np.int32).reshape(6, 2)
    np.testing.assert_array_equal(encode(rows), rows)
    assert seen == [4, 4]
