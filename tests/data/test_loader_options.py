"""Options of the draws: captions mixed, choices in turn, more augmentation, inputs of teachers that run in the step."""

from dataclasses import replace

import pytest
import torch

from mobileclip.data.loader import PairDataset, batches
from mobileclip.models import zoo
from mobileclip.training.online import online_teachers, teacher_inputs
from tests.data.pairs import equal, text_of


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_captions_come_with_their_own_embeddings(tiny_reinforced, content, recipe, share):
    both = PairDataset(tiny_reinforced, content, recipe)
    mixed = PairDataset(tiny_reinforced, content, replace(recipe, mix=share))
    count = 0
    for epoch in range(6):
        for row in range(len(both)):
            one, two = mixed[epoch, row], both[epoch, row]
            assert set(one) == {"image", "text", "teacher_image.first", "teacher_text.first"}
            synthetic = torch.equal(one["text"], two["synthetic_text"])
            assert synthetic or torch.equal(one["text"], two["text"])
            kind = "synthetic" if synthetic else "text"
            assert torch.equal(one["teacher_text.first"], two[f"teacher_{kind}.first"])
            assert torch.equal(one["image"], two["image"])
            count += synthetic
    assert count / (6 * len(both)) == pytest.approx(share, abs=0.08)


def test_in_turn_every_view_and_caption_comes_once_per_round(tiny_reinforced, content, recipe):
    dataset = PairDataset(tiny_reinforced, content, replace(recipe, sequential=True))
    starts = set()
    for row in range(8):
        items = [dataset[epoch, row] for epoch in range(6)]
        views = [item["teacher_image.first"].numpy().tobytes() for item in items]
        assert len(set(views[:3])) == 3
        assert views[:3] == views[3:]
        for name in ("text", "synthetic_text"):
            texts = [text_of(item[name]) for item in items]
            assert texts[0] != texts[1]
            assert texts[:2] == texts[2:4] == texts[4:]
        starts.add(text_of(items[0]["synthetic_text"]).startswith("one "))
    assert starts == {True, False}  # not all samples start with the same one
    again = PairDataset(tiny_reinforced, content, replace(recipe, sequential=True))
    assert equal(again[4, 2], dataset[4, 2])


def test_extra_augmentation_changes_the_students_pixels_alone(tiny_reinforced, content, recipe):
    plain = PairDataset(tiny_reinforced, content, recipe)
    more = PairDataset(tiny_reinforced, content, replace(recipe, extra_augment=(2, 20)))
    changed = 0
    for row in range(12):
        one, two = plain[0, row], more[0, row]
        changed += not torch.equal(one["image"], two["image"])
        assert two["image"].shape == (3, 32, 32)
        assert two["image"].dtype == torch.uint8
        assert equal({k: v for k, v in one.items() if k != "image"}, {k: v for k, v in two.items() if k != "image"})
        assert torch.equal(more[0, row]["image"], two["image"])
    assert changed > 8
    # The control of plain CLIP reads no synthetic captions and sees the same pixels: their runs stay paired.
    control = PairDataset(tiny_reinforced, content, replace(recipe, extra_augment=(2, 20), synthetic=(), teachers=()))
    assert all(torch.equal(control[0, row]["image"], more[0, row]["image"]) for row in range(12))


def test_online_teachers_give_the_stored_embeddings(tiny_reinforced, tiny_teachers, content, recipe):
    """The same views, captions, sizes and normalization: what differs is the precision of storage."""
    teacher = zoo.load("trained:first", trained=tiny_teachers)
    recipe = replace(recipe, online=teacher_inputs({"first": teacher}))
    dataset = PairDataset(tiny_reinforced, content, recipe)
    batch = next(batches(dataset, batch_size=8, first_step=0, last_step=1, seed=0, workers=0))
    found = online_teachers({"first": teacher})(batch)
    stored = {name: value for name, value in batch.items() if name.startswith("teacher_")}
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3)
        assert float(torch.cosine_similarity(found[name], value).min()) > 0.999999


def test_rows_of_a_batch(tiny_reinforced, content, recipe):
    dataset = PairDataset(tiny_reinforced, content, replace(recipe, teachers=()))
    given = {"batch_size": 7, "first_step": 1, "last_step": 3, "seed": 4}
    whole = list(batches(dataset, workers=0, **given))
    parts = [list(batches(dataset, workers=w, rows=rows, **given)) for w, rows in ((0, slice(0, 4)), (1, slice(4, 7)))]
    for one, first, second in zip(whole, *parts, strict=True):
        assert equal(one, {name: torch.cat([first[name], second[name]]) for name in one})
