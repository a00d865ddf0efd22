"""The loader: order and draws are functions of the seed, workers change nothing, teacher rows belong to the item."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip import manifest, storage
from mobileclip.config import Views
from mobileclip.data.augment import apply_view
from mobileclip.data.columns import ColumnPlan, ColumnReader, build_columns, collect, pack_texts, read_captions
from mobileclip.data.embeddings import decode_all
from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset, batches, collate_teachers, place_batch
from mobileclip.data.shards import ShardReader
from mobileclip.errors import DataError
from tests import s3
from tests.data.pairs import equal, text_of
from tests.faulty_s3 import FaultyS3


class TestOrder:
    @settings(max_examples=50, deadline=None)
    @given(samples=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5))
    def test_every_sample_once_per_epoch(self, samples, batch, seed):
        steps = -(-3 * samples // batch)
        places = list(itertools.chain.from_iterable(place_batch(samples, batch, step, seed) for step in range(steps)))
        for epoch in range(3):
            rows = places[epoch * samples : (epoch + 1) * samples]
            assert {e for e, _ in rows} == {epoch}
            assert sorted(p for _, p in rows) == list(range(samples))

    def test_is_a_function_of_the_seed_and_differs_by_epoch(self):
        first = [place_batch(100, 100, step, 1) for step in range(2)]
        assert [place_batch(100, 100, step, 1) for step in range(2)] == first
        assert [p for _, p in first[0]] != [p for _, p in first[1]]
        assert place_batch(100, 100, 0, 2) != first[0]


def test_resume_at_any_step_and_any_number_of_workers_gives_the_same_batches(tiny_reinforced, content, recipe):
    dataset = PairDataset(tiny_reinforced, content, recipe)

    def run(first, workers):
        return list(batches(dataset, batch_size=10, first_step=first, last_step=5, seed=4, workers=workers))

    whole = run(0, 0)
    assert len(whole) == 5
    assert whole[0]["image"].shape == (10, 3, 32, 32)
    for first, workers in ((2, 0), (0, 2), (4, 2)):
        assert all(equal(a, b) for a, b in zip(run(first, workers), whole[first:], strict=True))


def test_loading_draws_nothing_from_torchs_own_generator(tiny_reinforced, content, recipe):
    """A resumed run restores that generator and opens a loader anew: dropout must not notice."""
    dataset = PairDataset(tiny_reinforced, content, recipe)
    state = torch.get_rng_state()
    next(batches(dataset, batch_size=4, first_step=0, last_step=2, seed=4, workers=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_steps_are_planned_as_they_come(tiny_reinforced, content, recipe):
    """A billion-sample run has 10^5 steps of 10^5 places: planning them all first would take hours and the memory."""
    dataset = PairDataset(tiny_reinforced, content, recipe)
    feed = batches(dataset, batch_size=4, first_step=0, last_step=10**12, seed=4, workers=0)
    assert next(feed)["text"].shape == (4, 64)


def test_items_are_functions_of_epoch_and_position_alone(tiny_reinforced, content, recipe):
    dataset = PairDataset(tiny_reinforced, content, recipe)
    assert len(dataset) == 32
    again = PairDataset(tiny_reinforced, content, recipe)
    again[2, 9]
    assert equal(dataset[1, 5], again[1, 5])
    other_seed = PairDataset(tiny_reinforced, content, replace(recipe, seed=4))
    assert any(not equal(dataset[0, row], other_seed[0, row]) for row in range(8))
    assert any(not equal(dataset[0, row], dataset[1, row]) for row in range(8))


def test_teacher_rows_belong_to_the_drawn_view_and_captions(tiny_reinforced, content, recipe):
    dataset = PairDataset(tiny_reinforced, content, recipe)
    seen = set()
    for epoch, (index, shard) in itertools.product(range(4), enumerate(content.split("train"))):
        reader = ShardReader(tiny_reinforced, shard)
        views = ColumnReader(tiny_reinforced, content.column("views"), shard).all("views").numpy()
        synthetic = read_captions(tiny_reinforced, content.column("coca"), shard)
        stored = {
            kind: decode_all(ColumnReader(tiny_reinforced, content.column(f"first.{kind}"), shard))
            for kind in ("views", "captions", "coca")
        }
        for row in range(len(reader)):
            item, sample = dataset[epoch, index * 16 + row], reader.sample(row)
            image = decode(sample.image)
            shown = [apply_view(image, v, size=32, interpolation="bilinear") for v in views[row]]
            view = next(i for i, pixels in enumerate(shown) if torch.equal(pixels, item["image"]))
            caption = sample.captions.index(text_of(item["text"]))
            other = synthetic[row].index(text_of(item["synthetic_text"]))
            for name, kind, choice in (
                ("image", "views", view),
                ("text", "captions", caption),
                ("synthetic", "coca", other),
            ):
                features, counts = stored[kind]
                assert torch.equal(item[f"teacher_{name}.first"], features[counts[row] + choice])
            seen |= {("view", view), ("caption", caption), ("synthetic", other)}
    assert seen == {*((("view", i)) for i in range(3)), *((k, i) for k in ("caption", "synthetic") for i in range(2))}


def test_all_three_draws_are_even_and_independent(tiny_reinforced, content, recipe):
    dataset = PairDataset(tiny_reinforced, content, replace(recipe, teachers=(), views="whole"))
    texts = [(text_of(item["text"]), text_of(item["synthetic_text"])) for item in (dataset[e, 0] for e in range(400))]
    counts = {pair: texts.count(pair) for pair in set(texts)}
    assert len(counts) == 4
    assert all(60 < count < 140 for count in counts.values())


def test_whole_pictures_and_fresh_views(tiny_reinforced, content, recipe):
    plain = replace(recipe, synthetic=(), teachers=())
    whole = PairDataset(tiny_reinforced, content, replace(plain, views="whole"))
    assert set(whole[0, 3]) == {"image", "text"}
    sample = ShardReader(tiny_reinforced, content.split("train")[0]).sample(3)
    assert torch.equal(whole[0, 3]["image"], resize(decode(sample.image), plain.preprocess))
    fresh = PairDataset(tiny_reinforced, content, replace(plain, views=Views(num_views=5)))
    assert not torch.equal(fresh[0, 3]["image"], fresh[1, 3]["image"])
    assert torch.equal(fresh[1, 3]["image"], fresh[1, 3]["image"])


def test_a_selection_leaves_out_what_the_filter_dropped(tiny_reinforced, content, recipe, tmp_path):
    shards = content.split("train")
    plan = ColumnPlan("selection", "selection", {})
    kept = (torch.arange(16) % 3 == 0).to(torch.uint8)
    build_columns(str(tmp_path), [plan], shards, lambda *_: {"selection": {"keep": kept}})
    selected = collect(str(tmp_path), [plan], shards, content.moved(tiny_reinforced, str(tmp_path)))
    plain = replace(recipe, synthetic=(), teachers=(), views="whole")
    few = PairDataset(str(tmp_path), selected, plain)
    everyone = PairDataset(str(tmp_path), selected, replace(plain, selection=False))
    assert (len(few), len(everyone)) == (12, 32)
    assert torch.equal(few[0, 1]["image"], everyone[0, 3]["image"])
    assert len(PairDataset(str(tmp_path), selected, plain, splits=("validation",))) == 4


def test_from_s3_every_file_is_fetched_once_and_gives_the_same_items(
    tiny_reinforced, content, recipe, tmp_path, monkeypatch
):
    proxy = FaultyS3(s3.endpoint())
    s3.use(monkeypatch, AWS_ENDPOINT_URL=proxy.endpoint, MOBILECLIP_CACHE=str(tmp_path))
    folder = storage.join(s3.bucket("loader"), "reinforce")
    train = content.split("train")
    files = {shard.path for shard in train} | {
        part.path for column in content.columns for part in column.parts.values()
    }
    for path in files:
        storage.write_bytes(storage.join(folder, path), (Path(tiny_reinforced) / path).read_bytes())
    proxy.seen.clear()
    remote, local = (PairDataset(base, content, recipe) for base in (folder, tiny_reinforced))
    for place in itertools.product(range(2), range(0, 32, 5)):
        assert equal(remote[place], local[place])
    fetched = [line for line in proxy.seen if line.startswith("GET")]
    assert len(fetched) == len(set(fetched)) == len(files)
    proxy.close()
    storage.s3.connect.cache_clear()


def test_flagged_captions_are_not_drawn_unless_all_are(tiny_reinforced, content, recipe, tmp_path):
    """Sample 0 has a sound caption beside a flagged one, sample 1 has flagged ones only; rows keep their places."""
    shards = content.split("train")
    flags = torch.zeros(16, 2, dtype=torch.uint8)
    flags[0, 0] = 1
    flags[1] = 1
    plan = ColumnPlan("coca", "caption", {"captions": 2})

    def compute(shard, _missing):
        texts = read_captions(tiny_reinforced, content.column("coca"), shard)
        return {"coca": {**pack_texts(texts), "degenerate": flags}}

    build_columns(str(tmp_path), [plan], shards, compute)
    flagged = collect(str(tmp_path), [plan], shards, content.moved(tiny_reinforced, str(tmp_path)))
    dataset = PairDataset(str(tmp_path), flagged, replace(recipe, views="whole"))
    texts = read_captions(str(tmp_path), flagged.column("coca"), shards[0])
    features, counts = decode_all(ColumnReader(str(tmp_path), flagged.column("first.coca"), shards[0]))
    for row, allowed in ((0, {1}), (1, {0, 1}), (2, {0, 1})):
        items = [dataset[epoch, row] for epoch in range(24)]
        assert {text_of(item["synthetic_text"]) for item in items} == {texts[row][place] for place in allowed}
        for item in items:
            place = texts[row].index(text_of(item["synthetic_text"]))
            assert torch.equal(item["teacher_synthetic.first"], features[counts[row] + place])


def test_a_field_that_some_samples_lack(tiny_data, recipe):
    content = manifest.read(tiny_data)
    plain = replace(recipe, synthetic=(), teachers=(), views="whole", caption_field="descriptions")
    dataset = PairDataset(tiny_data, content, plain)
    assert 0 < len(dataset) < 32
    assert all(text_of(dataset[0, row]["text"]).startswith("a drawing of") for row in range(len(dataset)))
    one = PairDataset(tiny_data, content, replace(plain, caption_field="group"))
    assert text_of(one[0, 0]["text"]) in {"red", "green", "blue", "yellow"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"caption_field": "poems"}, r"^data: no sample with a 'poems' caption is left in '"),
        ({"synthetic": ("blip",)}, r"^data: no column 'blip' in the manifest"),
        ({"teachers": ("third",)}, r"^data: no column 'third\.views' in the manifest"),
        (
            {"caption_field": "descriptions"},
            r"^data: teacher 'first' has embeddings of the field 'captions', the training reads 'descriptions'\.$",
        ),
    ],
)
def test_what_is_not_there_is_named(tiny_reinforced, content, recipe, changes, match):
    clean = recipe if "caption_field" not in changes else replace(recipe, synthetic=())
    if changes.get("caption_field") == "poems":
        clean = replace(clean, teachers=())
    with pytest.raises(DataError, match=match):
        PairDataset(tiny_reinforced, content, replace(clean, **changes))
    with pytest.raises(DataError, match="no shard of split"):
        PairDataset(tiny_reinforced, content.model_copy(update={"shards": []}), recipe)


def test_collate_teachers():
    batch = {"teacher_image.b": torch.ones(2, 3), "teacher_image.a": torch.zeros(2, 5)}
    assert [t.shape[1] for t in collate_teachers(batch, "image", ("a", "b"))] == [5, 3]
