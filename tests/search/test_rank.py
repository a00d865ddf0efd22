"""Ranks and labels follow from the embeddings by definition."""

import numpy as np
import pytest
import torch

from mobileclip.errors import ConfigError, DataError
from mobileclip.search import index as indexes
from mobileclip.search import rank
from mobileclip.search.model import open_model
from tests.exports import exported
from tests.search.photos import fill


def search(index, model, query, *, top):
    return rank.nearest(index, rank.embed_query(model, query), top=top)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def index(photos, model):
    return indexes.update(photos, model)[0]


def test_by_text(index, model):
    query = model.encode_texts(["a dog on grass"])[0]
    cosines = {name: float(index.embeddings([name])[0] @ query) for name in index.names}
    hits = search(index, model, "a dog on grass", top=4)
    assert [hit.name for hit in hits] == sorted(cosines, key=lambda name: (-round(cosines[name], 6), name))[:4]
    assert len(search(index, model, "a dog", top=99)) == len(cosines)
    scores = [hit.score for hit in search(index, model, "a dog", top=99)]
    assert scores == sorted(scores, reverse=True)


def test_by_example(index, model, photos):
    hits = search(index, model, [photos / "00.png"], top=3)
    assert [hit.name for hit in hits[:2]] == ["00.png", "copy of 00.png"]
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    both = search(index, model, [photos / "01.png", photos / "旅行/東京.webp"], top=99)
    mean = index.embeddings(["01.png", "旅行/東京.webp"]).mean(0)
    assert both[0].score == pytest.approx(
        float((index.embeddings([both[0].name])[0] @ mean) / np.linalg.norm(mean)), abs=1e-4
    )


def test_labels_as_the_student_gives_them(index, model):
    """PyTorch's softmax over the student's own logits."""
    clip, labels = exported().clip, ["rot", "синий", "緑"]
    guesses = rank.classify(index, model, labels, templates=["a photo of a {}."])
    with torch.no_grad():
        texts = clip.encode_text([f"a photo of a {label}." for label in labels])
    logits = clip.logit_scale * torch.from_numpy(index.embeddings(index.names)) @ texts.T
    np.testing.assert_allclose([g.probabilities for g in guesses], logits.softmax(1).numpy(), atol=1e-3)
    assert [g.label for g in guesses] == [labels[row] for row in logits.argmax(1).tolist()]
    assert [g.name for g in guesses] == index.names


@pytest.mark.parametrize("place", ["checkpoint", "distill", "run", "export", "bundle", "local-dir"])
def test_every_reference_names_the_same_student(place, model):
    found = exported()
    reference = {
        "checkpoint": found.checkpoint, "distill": found.checkpoint.parent, "run": found.export.parent,
        "export": found.export, "bundle": found.bundle, "local-dir": f"local-dir:{found.checkpoint}",
    }[place]  # fmt: skip
    opened = open_model(str(reference))
    assert (opened.encode_texts(["ein Hund"]) * model.encode_texts(["ein Hund"])).sum() > 0.9999
    assert (opened.embed_dim, round(opened.logit_scale, 3)) == (model.embed_dim, round(model.logit_scale, 3))


def test_refusals(index, model, tmp_path):
    with pytest.raises(ConfigError, match="query: got none"):
        search(index, model, "  ", top=1)
    with pytest.raises(DataError, match="no file"):
        search(index, model, [tmp_path / "x.png"], top=1)
    with pytest.raises(ConfigError, match=r"^model: got '.*nothing', want a bundle"):
        open_model(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"^model: got a precision with"):
        open_model(str(exported().checkpoint), image="int8")
