"""One tiny student, split, written and proved once for all tests of the formats."""

import io

import pytest
import torch
from PIL import Image

from mobileclip.config import Export
from mobileclip.data.shards import Sample
from mobileclip.formats import programs, proof
from mobileclip.formats.program_ports import TensorSpec
from mobileclip.formats.towers import split
from tests.models.perturbed import patterned_images, perturbed_clip


@pytest.fixture(scope="session")
def clip():
    return perturbed_clip("tiny-mci")


@pytest.fixture(scope="session")
def samples():
    return pattern_samples(10)


def pattern_samples(count):
    """Striped pictures with captions."""
    words = ("red", "green", "blue", "striped", "dark", "bright", "wide", "narrow", "calm", "wild")
    pixels = (patterned_images(count, 80, seed=1) * 255).round().to(torch.uint8)
    return [
        Sample(f"{index:03d}", _png(picture), {"captions": [f"a {words[index % len(words)]} pattern", "unused"]})
        for index, picture in enumerate(pixels)
    ]


@pytest.fixture(scope="session")
def reference(clip, samples):
    return proof.refer(clip, samples)


@pytest.fixture(scope="session")
def calibration(clip):
    """Other pictures than those of the proof."""
    return proof.refer(clip, pattern_samples(26)[10:])


@pytest.fixture(scope="session")
def towers(clip):
    return split(clip)


@pytest.fixture(scope="session")
def section():
    return Export(precisions=["float32", "float16", "int8"])


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def written(section, towers, reference, folder):
    return {program.path: program for program in programs.build(section, towers, reference, folder)}


def ports(rows, width):
    """Input and output of a bare image tower, by an input batch."""
    given = TensorSpec(name="image", dtype="float32", shape=[1, *rows.shape[1:]], minimum=0, maximum=1)
    return given, TensorSpec(name="image_features", dtype="float32", shape=[1, width], minimum=-1, maximum=1)


def _png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()
