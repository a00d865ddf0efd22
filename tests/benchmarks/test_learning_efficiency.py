"""The study on a tiny dataset: what it records, what it repeats, and what its tables say."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import learning_efficiency, results, step_cost
from mobileclip import manifest
from mobileclip.config import Calibrate, Params
from mobileclip.data.loader import PairDataset, Recipe, batches
from mobileclip.models import zoo
from mobileclip.stages import calibrate
from mobileclip.tracking.protocol import LogTracker
from tests.tiny_chain import params, write_params

PARAMS = Params.model_validate(params())


@pytest.fixture(scope="module")
def study(tiny_reinforced, tmp_path_factory):
    """Two seeds of the four main variants, two steps each; the command with which they ran."""
    root = tmp_path_factory.mktemp("study")
    config = Calibrate(scales=[10.0, 50.0], batch_size=8, batches=1)
    calibrate.run(config, out=str(root / "calibrate"), tracker=LogTracker(), data=tiny_reinforced)
    write_params(root / "params.yaml", params())
    flags = {"--root": root, "--params": root / "params.yaml", "--out": root / "docs", "--seeds": 2}
    command = [
        "study",
        "--ablation-seeds",
        "0",
        "--other-seeds",
        "2",
        "--longer-seeds",
        "2",
        *(str(word) for pair in flags.items() for word in pair),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        learning_efficiency.main()
    return root, command


def test_every_training_is_a_line(study):
    rows = [json.loads(line) for line in (study[0] / "docs" / "results.jsonl").read_text().splitlines()]
    names = [*learning_efficiency.MAIN, *learning_efficiency.LONGER]
    assert {(row["variant"], row["seed"]) for row in rows} == {(n, s) for n in names for s in (0, 1)}
    ends = {row["variant"]: row["curve"][-1]["samples"] for row in rows}
    assert ends == {name: 16 * max(1, names.index(name) - 2) for name in names}  # the last two: twice, three times
    assert all(0 <= value <= 1 for row in rows for key, value in row["curve"][-1].items() if key != "samples")


def test_a_second_time_nothing_is_trained(study, monkeypatch):
    root, command = study
    before = (root / "docs" / "results.jsonl").read_bytes(), (root / "docs" / "results.md").read_bytes()
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(learning_efficiency, "train_clip", lambda *_, **__: pytest.fail("trained again"))
    learning_efficiency.main()
    assert ((root / "docs" / "results.jsonl").read_bytes(), (root / "docs" / "results.md").read_bytes()) == before


def test_other_settings_are_other_trainings(study, tmp_path):
    """Rows of another lambda or batch are not shown under the new one; length, seed and workers are no setting."""
    path = study[0] / "docs" / "results.jsonl"
    dataset = json.loads(path.read_text().splitlines()[0])["dataset"]

    def found(**changes):
        training = PARAMS.distill.training.model_copy(update=changes.pop("training", {}))
        distill = PARAMS.distill.model_copy(update={**changes, "training": training})
        settings = results.settings_of(PARAMS.model_copy(update={"distill": distill}))
        return len(results.read(path, dataset=dataset, steps=2, settings=settings))

    assert found() == found(seed=9, control=True, training={"steps": 7, "workers": 3}) == 12
    assert found(distill_weight=0.123) == found(training={"batch_size": 77}) == found(model="tiny-resnet") == 0


def test_the_page_has_a_row_for_each_variant_and_the_figure(study):
    text = (study[0] / "docs" / "results.md").read_text()
    assert all(f"| {name} | 2 |" in text for name in learning_efficiency.MAIN)
    assert "| chance |" in text
    assert (study[0] / "docs" / "figures" / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_targets_of_another_type_are_an_ablation(study, tiny_reinforced):
    """Same draws, other teacher embeddings: near the stored ones, and not theirs."""
    root, _ = study
    (curve,) = learning_efficiency.run_one(str(root), Params.model_validate(params()), "int8 targets", 0, 1)
    assert set(curve) > {"samples", "seen/r1", "unseen/r10"}
    content = manifest.read(tiny_reinforced)
    clip = zoo.create("tiny-mci")
    recipe = Recipe(clip.preprocess, clip.tokenizer, synthetic=("coca",), teachers=("first",))
    dataset = PairDataset(tiny_reinforced, content, recipe)
    batch = next(batches(dataset, batch_size=8, first_step=0, last_step=1, seed=0, workers=0))
    found = learning_efficiency.restored("int8")(batch)
    assert set(found) == {"teacher_image.first", "teacher_text.first", "teacher_synthetic.first"}
    for name, value in found.items():
        assert not torch.equal(value, batch[name])
        assert float(torch.cosine_similarity(value, batch[name]).min()) > 0.999


def test_an_ensemble_that_was_not_chosen_has_the_scales_it_was_tried_at(tmp_path):
    tried = [{"scales": {"a": 20.0}, "nll": 0.5}, {"scales": {"b": 50.0, "a": 30.0}, "nll": 0.7}]
    (tmp_path / "curves.json").write_text(json.dumps({"ensembles": tried}))
    assert learning_efficiency.scales_of(str(tmp_path), ("a", "b")) == {"a": 30.0, "b": 50.0}
    assert learning_efficiency.scales_of(str(tmp_path), ("a",)) == {"a": 20.0}


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_chance_is_the_recall_of_random_orders(count, k, seed):
    rng = np.random.default_rng(seed)
    right = rng.integers(1, count + 1, size=4)
    # Of the C(n, k) equally likely sets of first k candidates, those without a right one miss.
    shown = min(k, count)
    missed = [math.comb(count - int(r), shown) / math.comb(count, shown) for r in right]
    padded = torch.tensor([int(right[i % 4]) for i in range(count)])
    wanted = 1 - np.mean([missed[i % 4] for i in range(count)])
    assert learning_efficiency._chance(padded, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ([(100, 0.2), (200, 0.4)], 1.0),  # reaches plain's best where plain does
        ([(100, 0.4), (200, 0.5)], 2.0),  # with half the samples
        ([(100, 0.8), (200, 0.9)], 4.0),  # half way to its first point
        ([(100, 0.1), (200, 0.3)], 0.0),  # never
    ],
)
def test_samples_saved(other, wanted):
    assert results.saving([(100, 0.3), (200, 0.4)], other) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("scores", "wanted", "found"),
    [
        ({1: 0.3, 2: 0.4, 3: 0.42}, 0.35, 1.5),
        ({1: 0.3, 2: 0.4, 3: 0.42}, 0.42, 3.0),
        ({1: 0.3, 2: 0.4, 3: 0.42}, 0.43, math.inf),
        ({1: 0.3, 2: 0.2, 3: 0.4}, 0.3, 1.0),  # the first time it is reached
        ({1: 0.4, 2: 0.5}, 0.2, 0.5),
    ],
)
def test_how_much_longer_plain_training_takes(scores, wanted, found):
    assert results.needed(scores, wanted) == pytest.approx(found)


def _section_of_lengths(rows, ends, folder):
    """The page's section on longer trainings, with these last scores by variant and seed."""
    for row in rows:
        row["curve"][-1]["seen/r10"] = ends[row["variant"]][row["seed"]]
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results.write(
        path, datasets={"main": rows[0]["dataset"]}, steps=2, params=PARAMS, teachers={}, out=folder, ablations=[]
    )
    return (folder / "results.md").read_text().split("### Plain CLIP for longer")[1]


def test_longer_plain_trainings_have_a_section(study, tmp_path):
    """The interval over two seeds spans what either of them alone needs."""
    rows = [json.loads(line) for line in (study[0] / "docs" / "results.jsonl").read_text().splitlines()]
    ends = {"plain CLIP": (0.30, 0.30), results.longer(2): (0.40, 0.50), results.longer(3): (0.45, 0.5)}
    ends[results.REINFORCED] = (0.35, 0.55)
    rows = [row for row in rows if row["variant"] in ends]
    section = _section_of_lengths(rows, ends, tmp_path)
    line = next(line for line in section.splitlines() if line.startswith("| **needed**"))
    assert line.split("|")[4].strip() == "2.0× [1.5×, over 3×]"


def test_lengths_of_more_seeds_have_a_table_of_their_own(study, tmp_path):
    """Three times the steps for one seed, twice for both: the interval of both must not be lost."""
    rows = [json.loads(line) for line in (study[0] / "docs" / "results.jsonl").read_text().splitlines()]
    ends = {"plain CLIP": (0.30, 0.30), results.longer(2): (0.40, 0.40), results.longer(3): (0.50,)}
    ends[results.REINFORCED] = (0.45, 0.33)
    rows = [row for row in rows if row["seed"] < len(ends.get(row["variant"], ()))]
    section = _section_of_lengths(rows, ends, tmp_path)
    lines = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("|")]
    found = [(row[1], row[2], row[4]) for row in lines if row[1].startswith(("plain", "**needed**"))]
    assert [row[:2] for row in found] == [
        ("plain CLIP", "2"), (results.longer(2), "2"), ("**needed**", ""),
        ("plain CLIP", "1"), (results.longer(2), "1"), (results.longer(3), "1"), ("**needed**", ""),
    ]  # fmt: skip
    assert found[2][2] == "1.9× [1.3×, over 2×]"
    assert found[6][2] == "2.5× [2.5×, 2.5×]"


def test_numbers_of_views_have_a_section_of_their_own_dataset(study, tmp_path):
    """Differences to the dataset's own largest student, by hand."""
    source = [json.loads(line) for line in (study[0] / "docs" / "results.jsonl").read_text().splitlines()]
    main = source[0]["dataset"]
    names = {results.REINFORCED: results.MOST, results.PLAIN: "1 view"}
    other = [row | {"variant": names[row["variant"]], "dataset": "wide"} for row in source if row["variant"] in names]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in source + other))
    datasets = {"main": main, "counts": "wide"}
    results.write(path, datasets=datasets, steps=2, params=PARAMS, teachers={}, out=tmp_path, ablations=[])
    section = (tmp_path / "results.md").read_text().split("## Numbers of views and captions")[1]
    ends = {(row["variant"], row["seed"]): row["curve"][-1]["seen/r10"] for row in other}
    mean = sum(ends["1 view", seed] - ends[results.MOST, seed] for seed in (0, 1)) / 2
    line = next(line for line in section.splitlines() if line.startswith("| 1 view |"))
    assert line.split("|")[4].split()[0] == f"{100 * mean:+.1f}"
    assert "(figures/ablations.png)" in section
    assert (tmp_path / "figures" / "ablations.png").read_bytes().startswith(b"\x89PNG")


def test_the_cost_of_a_step_is_a_section_where_it_was_measured(study, tmp_path):
    path = study[0] / "docs" / "results.jsonl"
    dataset = json.loads(path.read_text().splitlines()[0])["dataset"]
    clocks = {"median_seconds": 0.5, "ratio_to_plain": {"median": 1.25, "quartiles": [1.0, 1.5]}}
    variants = {name: {"wall": clocks, "cpu": clocks} for name in ("plain", "stored")}
    found = {"model": "tiny-mci", "batch_size": 8, "teachers": ["first"], "variants": variants}
    for wanted in (False, True):
        if wanted:
            (tmp_path / step_cost.FILE).write_text(json.dumps(found))
        results.write(path, datasets={"main": dataset}, steps=2, params=PARAMS, teachers={}, out=tmp_path, ablations=[])
        text = (tmp_path / "results.md").read_text()
        assert ("## Cost of a step" in text) is wanted
        assert ("| stored | 0.500 | 0.500 | 1.250 [1.000, 1.500] |" in text) is wanted
        assert "ablations.png" not in text
