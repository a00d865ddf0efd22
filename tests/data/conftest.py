"""What the tests of the pair loader share."""

import pytest

from mobileclip import manifest
from mobileclip.data.loader import Recipe
from tests.data.pairs import PREPROCESS, tokens


@pytest.fixture(scope="module")
def content(tiny_reinforced):
    return manifest.read(tiny_reinforced)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(PREPROCESS, tokens, synthetic=("coca",), teachers=("first",), seed=3)
