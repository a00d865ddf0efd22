"""Quantization-aware fine-tuning: the executed static int8 program gets nearer to the student."""

import pytest
import torch

from mobileclip import manifest
from mobileclip.config import Export
from mobileclip.data import images
from mobileclip.formats import programs, proof
from mobileclip.formats.digests import digest
from mobileclip.formats.qat import fine_tune as qat
from tests.formats.conftest import pattern_samples

PRECISIONS = ["float32", "int8_static"]
LOOSE = {"precisions": PRECISIONS, "max_kept": 0, "max_error_int8": 100}


@pytest.fixture(scope="module")
def calibration(clip):
    """Other pictures than those of the proof."""
    return proof.refer(clip, pattern_samples(26)[10:])


@pytest.fixture(scope="module")
def plain(towers, reference, calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    made = programs.build(Export(**LOOSE), towers, reference, folder, calibrate=lambda: calibration)
    return folder, {program.path: program for program in made}


@pytest.fixture(scope="module")
def tune(clip, towers):
    """Fine-tunes on pictures that are neither of the proof nor of calibration."""
    pixels = torch.stack([images.resize(images.decode(s.image), clip.preprocess) for s in pattern_samples(90)[26:]])

    def run(calibration, steps=12):
        generator = torch.Generator().manual_seed(0)
        drawn = [{"image": pixels[torch.randperm(64, generator=generator)[:16]]} for _ in range(steps)]
        with proof.one_thread():
            return qat.fine_tune(
                towers.image, torch.from_numpy(calibration.pixels), drawn,
                lambda got, wanted, _: qat.relative_loss(got, wanted), steps=steps, learning_rate=3e-5,
            )  # fmt: skip

    return run


@pytest.mark.slow
def test_executed_program_gets_nearer_to_the_student(plain, tune, towers, reference, calibration, tmp_path):
    whole = plain[1]["image.int8_static.onnx"].figures["error"]
    # A budget that it misses without, and that it meets with no layer kept in float32.
    section = Export(precisions=PRECISIONS, max_kept=0, max_error_int8=0.98 * whole, qat_steps=12)
    made = programs.build(section, towers, reference, tmp_path, calibrate=lambda: calibration, tune=tune)
    program = next(p for p in made if p.precision == "int8_static")
    assert program.figures["post_training/error"] == whole
    assert program.figures["error"] < 0.98 * whole
    assert "post_training/recall/program" in program.figures
    assert program.settings["qat_steps"] == 12
    assert program.bytes < 0.4 * plain[1]["image.float32.onnx"].bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "image.float32.onnx", "image.int8_static.onnx", "text.float32.onnx",
    ]  # fmt: skip
    assert digest(tmp_path / "image.float32.onnx") == digest(plain[0] / "image.float32.onnx")


def test_program_within_its_budget_is_left_as_it_is(plain, towers, reference, calibration, tmp_path):
    def never(_):
        raise AssertionError

    section = Export(**LOOSE, qat_steps=12)
    made = programs.build(section, towers, reference, tmp_path, calibrate=lambda: calibration, tune=never)
    assert {p.path: p for p in made} == plain[1]


def test_same_tower_again_and_the_float_one_unharmed(tune, towers, calibration):
    before = {name: value.clone() for name, value in towers.image.state_dict().items()}
    one, other = (tune(calibration, steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one.keys() == before.keys()
    assert not all(torch.equal(one[name], before[name]) for name in one)
    assert all(torch.equal(value, towers.image.state_dict()[name]) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in towers.image.parameters())


def test_stored_teachers_are_learned_from_where_there_are_any(clip, towers, calibration, tiny_reinforced, tiny_data):
    def tuned(data, weight):
        section = Export(qat_steps=2, qat_batch_size=8, qat_teacher_weight=weight)
        content = manifest.read(data)
        return qat.tune(section, clip, towers, data, content, calibration).state_dict()

    def equal(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    taught, alone = tuned(tiny_reinforced, 1.0), tuned(tiny_reinforced, 0.0)
    assert not equal(taught, alone)
    assert equal(tuned(tiny_reinforced, 1.0), taught)
    assert equal(tuned(tiny_data, 1.0), tuned(tiny_data, 0.0))


def test_relative_loss_is_the_square_of_the_proofs_error(reference):
    wanted = torch.from_numpy(reference.image_features)
    got = torch.nn.functional.normalize(
        wanted + 0.01 * torch.randn(wanted.shape, generator=torch.manual_seed(0)), dim=1
    )
    error = proof.relative_error(got.numpy(), wanted.numpy())
    assert float(qat.relative_loss(got, wanted)) == pytest.approx(error**2, rel=1e-4)
