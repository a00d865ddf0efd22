"""Retrieval while training: the numbers of the final evaluation, on real data; ties count against the model."""

from pathlib import Path

import pytest
import torch

from mobileclip import manifest
from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.errors import MobileClipError
from mobileclip.evaluation.retrieval import build_gallery, rank_pairs
from mobileclip.models import zoo
from mobileclip.training.captioning import caption_validation
from mobileclip.training.validation import retrieval_validation
from tests.models.perturbed import perturbed_clip


@pytest.mark.parametrize("field", ["captions", "group"])
def test_ranks_are_the_final_evaluations(tiny_data, field):
    """With `group` all four pictures carry the same caption: one candidate, and every picture finds it."""
    torch.set_num_threads(1)
    clip = perturbed_clip("tiny-mci", 0)
    content = manifest.read(tiny_data)
    score = retrieval_validation(clip, tiny_data, content, caption_field=field)
    found = score()
    samples = list(read_samples(tiny_data, content, "validation"))
    pixels = torch.stack([resize(decode(s.image), clip.preprocess) for s in samples])
    image = clip.encode_image(image_tensor(pixels, clip.preprocess)).numpy()
    if field == "group":
        assert found == {"i2t/r1": 1.0, "i2t/r10": 1.0}
        return
    recipe = Recipe(clip.preprocess, clip.tokenizer, field, views="whole", selection=False)
    dataset = PairDataset(tiny_data, content, recipe, splits=("validation",))
    shown = []  # which of its captions a sample shows is drawn
    for place, sample in enumerate(samples):
        tokens = clip.tokenizer(sample.captions)
        shown += [
            [c] for c, row in zip(sample.captions, tokens, strict=True) if torch.equal(row, dataset[0, place]["text"])
        ]
    gallery = build_gallery(shown)
    ranks = rank_pairs(image, clip.encode_text(gallery.texts).numpy(), gallery).image_to_text
    assert found == {f"i2t/r{k}": float((ranks <= k).mean()) for k in (1, 10)}
    assert score() == found


def test_a_model_that_tells_nothing_apart_finds_nothing(tiny_data):
    clip = zoo.create("tiny-mci")
    with torch.no_grad():
        for value in clip.model.parameters():
            value.zero_()
    score = retrieval_validation(clip, tiny_data, manifest.read(tiny_data), caption_field="captions")
    assert score()["i2t/r1"] == 0.0


def test_no_split_no_scores(tiny_data):
    content = manifest.read(tiny_data)
    rest = content.model_copy(update={"shards": content.split("train")})
    assert retrieval_validation(zoo.create("tiny-mci"), tiny_data, rest, caption_field="captions") is None
    assert retrieval_validation(zoo.create("tiny-mci"), tiny_data, content, caption_field="poems") is None


@pytest.mark.parametrize(("make", "model"), [(retrieval_validation, "tiny-mci"), (caption_validation, "tiny-coca")])
def test_a_damaged_split_is_said_and_not_taken_for_none(tiny_data, tmp_path, make, model):
    content = manifest.read(tiny_data)
    (shard,) = content.split("validation")
    (tmp_path / shard.path).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / shard.path).write_bytes((Path(tiny_data) / shard.path).read_bytes()[:2048])
    with pytest.raises(MobileClipError, match=f"{shard.name}"):
        make(zoo.create(model), str(tmp_path), content, caption_field="captions")
