"""Golden values are what an app must get from the exported programs."""

import json
import shutil

import numpy as np

from mobileclip.formats.bundle import golden_values as golden
from mobileclip.formats.bundle import tokenizer
from mobileclip.formats.runtime import load_program


def test_programs_give_the_golden_values(clip, written, folder, tmp_path):
    values = json.loads(golden.write(clip, tmp_path).read_text(encoding="utf-8"))
    pixels = golden.picture(64).astype(np.float32) / 255
    image = load_program(folder / "image.float32.onnx")(pixels)
    text = load_program(folder / "text.float32.onnx")(np.array(values["tokens"], dtype=np.int32))
    np.testing.assert_allclose(image, values["image_features"], atol=5e-6)
    np.testing.assert_allclose(text, values["text_features"], atol=5e-6)


def test_programs_tell_their_own_answers(clip, written, folder, tmp_path):
    """A lossy program is held to what it computes itself; one that only an emulation ran tells nothing."""
    for path in written:
        shutil.copyfile(folder / path, tmp_path / path)
    emulated, *executed = written.values()
    programs = [emulated.model_copy(update={"executed": False}), *executed]
    values = json.loads(golden.write(clip, tmp_path, programs).read_text(encoding="utf-8"))
    assert set(values["programs"]) == {program.path for program in executed}
    tokens = np.array(values["tokens"], dtype=np.int32)
    int8 = load_program(folder / "text.int8.onnx", threads=1)(tokens)
    np.testing.assert_allclose(int8, values["programs"]["text.int8.onnx"], atol=6e-5)
    assert np.abs(int8 - np.array(values["text_features"])).max() > 1e-3


def test_tokenizer_gives_the_golden_tokens(clip, tmp_path):
    values = golden.describe(clip)
    tokenizer.write(clip.tokenizer, tmp_path)
    assert tokenizer.load(tmp_path)(values["texts"]).tolist() == values["tokens"]


def test_picture_is_its_formula():
    picture = golden.picture(32)
    assert picture.shape == (1, 3, 32, 32)
    assert picture[0, 2, 7, 11] == (5 * 11 + 3 * 7 + 80 * 2) % 256
