"""The model that folders are searched with, and a way to see what it is asked."""

import dataclasses

import pytest

from mobileclip.search.model import open_model
from tests.exports import exported


@pytest.fixture(scope="session")
def model():
    return open_model(str(exported().bundle), threads=1)


@pytest.fixture
def watched(model):
    """The model itself, and the number of images of every call."""
    calls = []

    def encode(pixels):
        calls.append(len(pixels))
        return model.encode_pixels(pixels)

    return dataclasses.replace(model, encode_pixels=encode), calls
