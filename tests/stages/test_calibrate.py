"""calibrate: the chosen scales are the best of the grid by an independent count, and only the manifest changes."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mobileclip import manifest
from mobileclip.config import Calibrate, Optimizer, Training
from mobileclip.data.columns import ColumnPlan, build_columns, collect
from mobileclip.data.embeddings import encode
from mobileclip.errors import ConfigError, DataError
from mobileclip.stages import calibrate
from mobileclip.tracking.protocol import LogTracker

SCALES = [2.0, 8.0, 30.0, 100.0]
CONFIG = Calibrate(select=False, scales=SCALES, batch_size=16, batches=4)


def _dataset(folder, captioned, teachers, *, views=2):
    """A dataset whose teachers' embeddings are given: `sharpness` says how well an image points at its caption."""
    content = manifest.read(captioned)
    shards = content.split("train")
    plans = []
    for name in teachers:
        plans += [
            ColumnPlan(f"{name}.{kind}", "embedding", {"logit_scale": 60.0, "dim": 64})
            for kind in ("views", "captions")
        ]

    def compute(shard, _missing):
        found = {}
        for index, (name, noise) in enumerate(teachers.items()):
            generator = torch.Generator().manual_seed(int(shard.sha256[:6], 16) + index)
            text = normalize(torch.randn(shard.samples, 64, generator=generator), dim=1)
            repeated = text.repeat_interleave(views, dim=0)
            image = normalize(repeated + noise * torch.randn(repeated.shape, generator=generator) / 8, dim=1)
            found[f"{name}.views"] = encode(image, [views] * shard.samples, "float32")
            found[f"{name}.captions"] = encode(text, [1] * shard.samples, "float32")
        return found

    build_columns(str(folder), plans, shards, compute)
    manifest.write(str(folder), collect(str(folder), plans, shards, content.moved(captioned, str(folder))))
    return str(folder)


def _run(config, data, out):
    return calibrate.run(config, out=str(out), tracker=LogTracker(), data=data)


def _literal(batches, scales):
    """Negative log-likelihood of the true pair under the averaged affinities, by loops in double precision."""
    total, count = 0.0, 0
    for batch in batches:
        size = len(next(iter(batch.values()))[0])
        for transpose, row in itertools.product((False, True), range(size)):
            probability = 0.0
            for name, pair in batch.items():
                image, text = (np.asarray(t, dtype=np.float64) for t in pair)
                products = (image @ text[row] if transpose else text @ image[row]) * scales[name]
                powers = np.exp(products - products.max())
                probability += powers[row] / powers.sum() / len(batch)
            total -= math.log(probability)
            count += 1
    return total / count


@pytest.fixture(scope="module")
def two(tiny_captioned, tmp_path_factory):
    return _dataset(tmp_path_factory.mktemp("two"), tiny_captioned, {"sharp": 2.5, "vague": 6.0})


def _batches(config, data):
    content = manifest.read(data)
    return [calibrate._batch(config, data, content, content.teachers(), i) for i in range(config.batches)]


def test_the_joint_scales_are_the_best_of_the_grid(two, tmp_path):
    metrics = _run(CONFIG, two, tmp_path)
    batches = _batches(CONFIG, two)
    scored = {
        pair: _literal(batches, dict(zip(("sharp", "vague"), pair, strict=True)))
        for pair in itertools.product(SCALES, repeat=2)
    }
    best = min(scored, key=scored.__getitem__)
    assert (metrics["scale/sharp"], metrics["scale/vague"]) == best
    assert metrics["nll/ensemble"] == pytest.approx(scored[best], rel=1e-5)
    for name in ("sharp", "vague"):
        alone = [_literal([{name: b[name]} for b in batches], {name: s}) for s in SCALES]
        assert metrics[f"nll/{name}"] == pytest.approx(min(alone), rel=1e-5)
        assert metrics[f"scale_alone/{name}"] == SCALES[alone.index(min(alone))]
        assert json.loads((tmp_path / "curves.json").read_text())["nll"][name] == pytest.approx(alone, rel=1e-5)
    assert metrics["scale_alone/sharp"] > metrics["scale_alone/vague"]


def test_three_teachers_reach_a_point_that_no_single_change_improves(tiny_captioned, tmp_path):
    teachers = {"a": 2.5, "b": 6.0, "c": 4.0}
    data = _dataset(tmp_path / "data", tiny_captioned, teachers)
    metrics = _run(CONFIG, data, tmp_path / "out")
    chosen = {name: metrics[f"scale/{name}"] for name in teachers}
    batches = _batches(CONFIG, data)
    best = _literal(batches, chosen)
    assert metrics["nll/ensemble"] == pytest.approx(best, rel=1e-5)
    for name, scale in itertools.product(teachers, SCALES):
        assert _literal(batches, {**chosen, name: scale}) >= best - 1e-6


def test_a_teacher_that_makes_the_ensemble_worse_is_left_out(tiny_captioned, tmp_path):
    """The greedy choice by the literal count: the best single teacher, then one more as long as one helps."""
    teachers = {"vague": 60.0, "a": 3.0, "b": 3.0}
    data = _dataset(tmp_path / "data", tiny_captioned, teachers)
    config = CONFIG.model_copy(update={"select": True})
    metrics = _run(config, data, tmp_path / "out")
    batches = _batches(config, data)

    def best(names):
        grid = [dict(zip(names, pair, strict=True)) for pair in itertools.product(SCALES, repeat=len(names))]
        return min(((_literal([{n: b[n] for n in names} for b in batches], s), i) for i, s in enumerate(grid)))[0]

    chosen = {name for name in teachers if f"scale/{name}" in metrics}
    assert chosen == {"a", "b"}
    assert metrics["nll/ensemble"] == pytest.approx(best(["a", "b"]), rel=1e-5)
    assert best(["a", "b"]) < min(best(["a"]), best(["b"]), best(["vague", "a", "b"]))
    assert set(manifest.read(str(tmp_path / "out")).scales) == chosen


def test_a_dataset_without_teachers_is_refused(tiny_captioned, tmp_path):
    with pytest.raises(DataError, match=r"^calibrate: '.*' has no teacher embeddings, want the output of reinforce\.$"):
        _run(CONFIG, tiny_captioned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batches_take_the_same_rows_for_every_teacher_and_pairs_belong_together(two):
    for batch in _batches(CONFIG, two):
        assert len(batch["sharp"][0]) == 16
        for image, text in batch.values():
            right = (image * text).sum(dim=1)
            assert right.mean() > (image @ text.T).mean() + 0.1
    first, second = _batches(CONFIG, two)[:2]
    assert not torch.equal(first["sharp"][0], second["sharp"][0])


def test_a_batch_larger_than_a_shard_goes_on_in_the_next(two, caplog):
    content = manifest.read(two)
    shards = content.split("train")
    total = sum(shard.samples for shard in shards)
    size = max(shard.samples for shard in shards) + 1
    assert size <= total
    (batch,) = _batches(CONFIG.model_copy(update={"batch_size": size, "batches": 1}), two)
    assert batch["sharp"][0].shape == (size, 64)
    assert len(batch["sharp"][1].unique(dim=0)) == size  # every row once
    assert caplog.text == ""
    (batch,) = _batches(CONFIG.model_copy(update={"batch_size": total + 1, "batches": 1}), two)
    assert len(batch["vague"][0]) == total
    assert f"calibrate.batch_size: got {total + 1}, the dataset has {total} pairs" in caplog.text


def test_pairs_that_the_filter_dropped_are_not_drawn(two, tmp_path):
    content = manifest.read(two).moved(two, str(tmp_path))
    shards = content.split("train")
    plan = ColumnPlan("selection", "selection", {})

    def keep_every_third(shard, _missing):
        return {"selection": {"keep": (torch.arange(shard.samples) % 3 == 0).to(torch.uint8)}}

    build_columns(str(tmp_path), [plan], shards, keep_every_third)
    manifest.write(str(tmp_path), collect(str(tmp_path), [plan], shards, content))
    config, content = CONFIG.model_copy(update={"batch_size": 1000}), manifest.read(str(tmp_path))
    rows = calibrate._rows(config, str(tmp_path), content, ["sharp"], torch.Generator())
    assert {shard.name: sorted(kept.tolist()) for shard, kept in rows} == {
        shard.name: list(range(0, shard.samples, 3)) for shard in shards
    }


def test_samples_without_captions_are_not_drawn(two, tiny_captioned, tmp_path):
    """Else their views would be paired with the next sample's caption."""
    content = manifest.read(two).moved(two, str(tmp_path))
    shards = content.split("train")
    plan = ColumnPlan("sharp.captions", "embedding", {"logit_scale": 60.0, "dim": 64, "field": "descriptions"})

    def every_third(shard, _missing):
        counts = [2 * int(index % 3 == 0) for index in range(shard.samples)]
        return {"sharp.captions": encode(normalize(torch.randn(sum(counts), 64), dim=1), counts, "float32")}

    others = [column for column in content.columns if column.name != plan.name]
    content = content.model_copy(update={"columns": others})
    build_columns(str(tmp_path / "new"), [plan], shards, every_third)
    final = collect(str(tmp_path / "new"), [plan], shards, content.moved(str(tmp_path), str(tmp_path / "new")))
    manifest.write(str(tmp_path / "new"), final)
    config, data = CONFIG.model_copy(update={"batch_size": 1000}), str(tmp_path / "new")
    rows = calibrate._rows(config, data, final, ["sharp", "vague"], torch.Generator())
    assert {shard.name: sorted(kept.tolist()) for shard, kept in rows} == {
        shard.name: list(range(0, shard.samples, 3)) for shard in shards
    }
    assert len(_batches(CONFIG.model_copy(update={"batch_size": 4}), data)) == CONFIG.batches

    def nothing(shard, _missing):
        return {"sharp.captions": encode(torch.empty(0, 64), [0] * shard.samples, "float32")}

    empty = str(tmp_path / "empty")
    build_columns(empty, [plan], shards, nothing)
    manifest.write(empty, collect(empty, [plan], shards, content.moved(str(tmp_path), empty)))
    with pytest.raises(DataError, match=r"no sample in '.*empty' has a view and a caption that the teachers"):
        _run(CONFIG, empty, tmp_path / "out")


def test_only_the_manifest_changes_and_twice_is_the_same(two, tmp_path):
    first = _run(CONFIG, two, tmp_path / "a")
    assert _run(CONFIG, two, tmp_path / "b") == first
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["curves.json", "ensembles.png", "manifest.json", "scales.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    before, after = manifest.read(two), manifest.read(str(tmp_path / "a"))
    assert [p.sha256 for c in after.columns for p in c.parts.values()] == [
        p.sha256 for c in before.columns for p in c.parts.values()
    ]
    assert after.scales == {name: first[f"scale/{name}"] for name in ("sharp", "vague")}
    assert _run(CONFIG.model_copy(update={"seed": 1}), two, tmp_path / "c")["nll/sharp"] != first["nll/sharp"]


def test_off_keeps_the_teachers_own_scales(two, tmp_path):
    metrics = _run(CONFIG.model_copy(update={"enabled": False}), two, tmp_path)
    assert metrics == {"scale/sharp": 60.0, "scale/vague": 60.0}
    assert manifest.read(str(tmp_path)).scales == {"sharp": 60.0, "vague": 60.0}


def test_given_scales_are_taken_where_the_search_is_off(two, tmp_path):
    config = CONFIG.model_copy(update={"enabled": False, "given": {"vague": 70.0}})
    _run(config, two, tmp_path)
    assert manifest.read(str(tmp_path)).scales == {"sharp": 60.0, "vague": 70.0}
    with pytest.raises(ConfigError, match=r"^calibrate\.given: got a scale for \['nobody'\], the dataset has \["):
        _run(config.model_copy(update={"given": {"nobody": 1.0}}), two, tmp_path)


def test_every_ensemble_is_compared(two, tmp_path):
    metrics = _run(CONFIG, two, tmp_path)
    ensembles = json.loads((tmp_path / "curves.json").read_text())["ensembles"]
    assert max((set(e["scales"]) for e in ensembles), key=len) == {"sharp", "vague"}
    found = {tuple(e["scales"]): e["nll"] for e in ensembles}
    assert found[("sharp", "vague")] == pytest.approx(metrics["nll/ensemble"])
    assert {found[(name,)] for name in ("sharp", "vague")} == {metrics["nll/sharp"], metrics["nll/vague"]}
    assert all(e["standard_error"] > 0 for e in ensembles)
    assert [e["nll"] for e in ensembles] == sorted(e["nll"] for e in ensembles)


class TestStudents:
    CONFIG = CONFIG.model_copy(
        update={
            "student": "tiny-resnet", "student_factors": [0.5],
            "student_training": Training(
                steps=2, batch_size=8, optimizer=Optimizer(warmup_steps=1), workers=0, log_every=2, checkpoint_every=0
            ),
        }
    )  # fmt: skip

    def test_short_runs_decide_among_the_candidates(self, tiny_reinforced, tmp_path):
        metrics = _run(self.CONFIG, tiny_reinforced, tmp_path)
        content = json.loads((tmp_path / "students.json").read_text())
        scores = {row["candidate"]: row["i2t/r10"] for row in content["candidates"]}
        assert {"ensemble_x0.5", "ensemble_x1"} <= set(scores)
        assert scores == {
            name.removeprefix("student/"): v for name, v in metrics.items() if name.startswith("student/")
        }
        assert scores[content["best"]] == max(scores.values())
        chosen = next(row["scales"] for row in content["candidates"] if row["candidate"] == content["best"])
        assert manifest.read(str(tmp_path)).scales == chosen
        again = tmp_path / "again"
        assert _run(self.CONFIG, tiny_reinforced, again) == metrics
        for name in ("students.json", "students.png"):
            assert (again / name).read_bytes() == (tmp_path / name).read_bytes()

    def test_what_decides_a_short_run_names_it(self, tiny_reinforced, tmp_path, monkeypatch):
        """Another seed or other captions are no continuation of an earlier attempt."""
        keys = []

        def see(*_, key, **__):
            keys.append(json.dumps(key, sort_keys=True))

        monkeypatch.setattr(calibrate, "train_clip", see)
        for changes in ({}, {}, {"seed": 5}, {"synthetic": ["coca"]}, {"student": "tiny-mci"}):
            config = self.CONFIG.model_copy(update=changes)
            calibrate._train_student(config, tiny_reinforced, "one", {"first": 10.0}, str(tmp_path))
        assert keys[0] == keys[1]
        assert len(set(keys)) == 4

    def test_short_runs_may_keep_their_best_weights(self, tiny_reinforced, tmp_path):
        """Refused before, as if there were no validation split; the scores are those of other weights than the last."""
        folder = str(tmp_path / "data")  # a training shard is what is held out: large enough that scores differ
        content = manifest.read(tiny_reinforced).moved(tiny_reinforced, folder)
        first, second = content.split("train")
        shards = [first, second.model_copy(update={"split": "validation"})]
        manifest.write(folder, content.model_copy(update={"shards": shards}))
        training = self.CONFIG.student_training.model_copy(update={"steps": 24, "log_every": 2, "batch_size": 16})
        scores = []
        for keep in ("last", "best"):
            section = {"student_training": training.model_copy(update={"keep_weights": keep}), "batch_size": 8}
            metrics = _run(self.CONFIG.model_copy(update=section), folder, tmp_path / keep)
            scores.append({name: score for name, score in metrics.items() if name.startswith("student/")})
        assert scores[0].keys() == scores[1].keys()
        assert scores[0] != scores[1]
