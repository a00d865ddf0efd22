"""The study on a tiny dataset: what it records, what it repeats, and what its tables say."""

import json
import math

import pytest

from benchmarks import learning_efficiency, results, step_cost
from benchmarks.results import PLAIN, REINFORCED, fewer, longer
from mobileclip import manifest
from mobileclip.config import Calibrate, Params
from mobileclip.data.columns import ColumnReader
from mobileclip.stages import calibrate
from mobileclip.tracking.protocol import LogTracker
from tests.tiny_chain import params, write_params

SEEDS = {"length": 2, "images": 1, "terms": 1}


def _params() -> dict:
    values = params()
    values["distill"] |= {"bank_weight": 1.0, "control_lr": 1e-4}
    values["evaluate"]["slice_field"] = "seen"
    return values


PARAMS = Params.model_validate(_params())


@pytest.fixture(scope="module")
def study(tiny_reinforced, tmp_path_factory):
    """Two seeds of every length and one of the rest, two steps each; the command with which they ran."""
    root = tmp_path_factory.mktemp("study")
    config = Calibrate(scales=[10.0, 50.0], batch_size=8, batches=1)
    calibrate.run(config, out=str(root / "calibrate"), tracker=LogTracker(), data=tiny_reinforced)
    write_params(root / "params.yaml", _params())
    flags = {"--root": root, "--params": root / "params.yaml", "--out": root / "docs"}
    flags |= {"--seeds": SEEDS["length"], "--image-seeds": SEEDS["images"], "--other-seeds": SEEDS["terms"]}
    command = ["study", *(str(word) for pair in flags.items() for word in pair)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        learning_efficiency.main()
    return root, command


def _rows(root):
    return [json.loads(line) for line in (root / "docs" / "results.jsonl").read_text().splitlines()]


def test_every_training_is_a_line(study):
    rows = _rows(study[0])
    wanted = {(name, seed) for name, one in results.VARIANTS.items() for seed in range(SEEDS[one.kind])}
    assert {(row["variant"], row["seed"]) for row in rows} == wanted
    assert len(rows) == len(wanted)
    steps, batch = PARAMS.distill.training.steps, PARAMS.distill.training.batch_size
    for row in rows:
        length = results.VARIANTS[row["variant"]].length
        assert row["samples"] == max(1, round(steps * length)) * batch
        assert set(row["scores"]) == set(row["floor"]) >= {"retrieval/mean/r10", "zero_shot/subgroup/top1"}
        assert all(0 <= value <= 1 for value in row["scores"].values())


def test_a_second_time_nothing_is_trained(study, monkeypatch):
    root, command = study
    before = (root / "docs" / "results.jsonl").read_bytes(), (root / "docs" / "results.md").read_bytes()
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(learning_efficiency, "run_one", lambda *_, **__: pytest.fail("trained again"))
    learning_efficiency.main()
    assert ((root / "docs" / "results.jsonl").read_bytes(), (root / "docs" / "results.md").read_bytes()) == before


def test_a_row_is_what_the_stages_score(study, tmp_path):
    """The reinforced row of seed 1 against `distill` and `evaluate` called by hand with the params file's sections."""
    from mobileclip.stages import distill, evaluate

    data = str(study[0] / "calibrate")
    config = PARAMS.distill.model_copy(update={"seed": 1, "control": False})
    distill.run(config, out=str(tmp_path / "distill"), tracker=LogTracker(), data=data)
    found = evaluate.run(
        PARAMS.evaluate,
        out=str(tmp_path / "evaluate"),
        tracker=LogTracker(),
        data=data,
        student=str(tmp_path / "distill"),
    )
    (row,) = [row for row in _rows(study[0]) if (row["variant"], row["seed"]) == (REINFORCED, 1)]
    wanted = {"retrieval/mean/r10": "student/retrieval/mean/r10"}
    wanted |= {
        f"slice/{value}/retrieval/mean/r10": f"slice/{value}/student/retrieval/mean/r10" for value in ("true", "false")
    }
    assert {key: row["scores"][key] for key in wanted} == {key: round(found[name], 6) for key, name in wanted.items()}


def test_plain_clip_is_the_control(study, tmp_path):
    """The plain row against the control that `distill` trains beside the student."""
    from mobileclip.stages import distill

    data = str(study[0] / "calibrate")
    own = learning_efficiency.section(PARAMS, results.VARIANTS[PLAIN], seed=PARAMS.distill.seed)
    distill.run(own, out=str(tmp_path / "own"), tracker=LogTracker(), data=data)
    distill.run(PARAMS.distill, out=str(tmp_path / "both"), tracker=LogTracker(), data=data)
    weights = [tmp_path / "own" / "student", tmp_path / "both" / "control"]
    assert len({(folder / "open_clip_model.safetensors").read_bytes() for folder in weights}) == 1


def test_other_settings_are_other_trainings(study):
    """Rows of another lambda or batch are not shown under the new one; seed and workers are no setting."""
    path = study[0] / "docs" / "results.jsonl"
    dataset = _rows(study[0])[0]["dataset"]

    def found(**changes):
        training = PARAMS.distill.training.model_copy(update=changes.pop("training", {}))
        distill = PARAMS.distill.model_copy(update={**changes, "training": training})
        settings = results.settings_of(PARAMS.model_copy(update={"distill": distill}))
        return len(results.read(path, results.Study(dataset, settings)))

    assert found() == found(seed=9, control=True, training={"workers": 3}) == len(_rows(study[0]))
    assert found(distill_weight=0.123) == found(training={"batch_size": 77}) == found(model="tiny-resnet") == 0


def test_the_page_has_a_row_for_each_variant_and_the_figure(study):
    text = (study[0] / "docs" / "results.md").read_text()
    for name, variant in results.VARIANTS.items():
        assert f"| {name} | {SEEDS[variant.kind]} |" in text
    assert "| R@10 |" in text
    assert "| subgroup top-1 |" in text
    assert "At the same samples the reinforced student finds" in text
    assert (study[0] / "docs" / "figures" / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_a_share_of_the_images_holds_the_smaller_one(study, tiny_reinforced, tmp_path):
    kept = {}
    for share in (0.3, 0.7):
        out = learning_efficiency.images_folder(str(tmp_path), share)
        learning_efficiency.share_of(tiny_reinforced, out, share)
        content = manifest.read(out)
        assert [c.name for c in content.columns].count("selection") == 1
        kept[share] = [
            bool(keep)
            for shard in content.split("train")
            for keep in ColumnReader(out, content.column("selection"), shard).all("keep")
        ]
    assert 0 < sum(kept[0.3]) < sum(kept[0.7]) < len(kept[0.7])
    assert all(large for small, large in zip(kept[0.3], kept[0.7], strict=True) if small)


@pytest.mark.parametrize(
    ("scores", "wanted", "found"),
    [
        ({1: 0.3, 2: 0.4, 3: 0.42}, 0.35, 1.5),
        ({1: 0.3, 2: 0.4, 3: 0.42}, 0.42, 3.0),
        ({1: 0.3, 2: 0.4, 3: 0.42}, 0.43, math.inf),
        ({1: 0.3, 2: 0.2, 3: 0.4}, 0.3, 1.0),  # the first time it is reached
        ({0.25: 0.2, 1: 0.5}, 0.1, 0.125),
    ],
)
def test_how_much_longer_a_training_takes(scores, wanted, found):
    assert results.needed(scores, wanted) == pytest.approx(found)


def _page(rows, ends, folder):
    """The page of rows with these headline scores by variant and seed."""
    rows = [row for row in rows if row["seed"] < len(ends.get(row["variant"], ()))]
    for row in rows:
        row["scores"][results.HEADLINE] = ends[row["variant"]][row["seed"]]
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = results.Study(rows[0]["dataset"], rows[0]["settings"])
    results.write(path, study, params=PARAMS, teachers={}, images=24, out=folder)
    return (folder / "results.md").read_text()


def test_the_factors_are_those_of_the_rows(study, tmp_path):
    """By hand: plain reaches 0.5 between 2x (0.4) and 4x (0.6), reinforced reaches 0.3 half way to its quarter."""
    ends = {
        PLAIN: (0.3, 0.3), longer(PLAIN, 2): (0.4, 0.4), longer(PLAIN, 4): (0.6, 0.6), REINFORCED: (0.5, 0.5),
        longer(REINFORCED, 0.5): (0.5, 0.5), longer(REINFORCED, 0.25): (0.4, 0.4), fewer(PLAIN, 0.5): (0.2,),
        fewer(REINFORCED, 0.5): (0.45,), fewer(REINFORCED, 0.25): (0.25,), fewer(REINFORCED, 0.1): (0.1,),
    }  # fmt: skip
    text = _page(_rows(study[0]), ends, tmp_path)
    assert "plain CLIP needs 3× [3×, 3×] the samples for that." in text
    assert "the reinforced student needs 0.19× [0.19×, 0.19×] the samples." in text  # 0.25 * 0.3 / 0.4
    assert "the reinforced student needs 0.31× [0.31×, 0.31×] the images." in text  # 0.25 + 0.25 * 0.05 / 0.2
    assert "finds 50.0 % within the first ten, plain CLIP 30.0 %: 1.7 times as many" in text


def test_a_score_that_no_length_reaches_is_said(study, tmp_path):
    ends = {PLAIN: (0.3, 0.3), longer(PLAIN, 2): (0.4, 0.4), REINFORCED: (0.5, 0.5)}
    assert "plain CLIP needs over 2× [over 2×, over 2×] the samples" in _page(_rows(study[0]), ends, tmp_path)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("retrieval/mean/r10", "R@10"), ("slice/true/retrieval/mean/r10", "R@10, true"), ("retrieval/mean/r1", "R@1"),
        ("zero_shot/group/top1", "group top-1"), ("slice/true/zero_shot/group/top1", ""), ("retrieval/mean/r5", ""),
        ("retrieval/mean/r10/low", ""),
    ],
)  # fmt: skip
def test_which_metrics_are_shown(key, name):
    assert results.label(key) == name


def test_the_cost_of_a_step_is_a_section_where_it_was_measured(study, tmp_path):
    clocks = {"median_seconds": 0.5, "ratio_to_plain": {"median": 1.25, "quartiles": [1.0, 1.5]}}
    variants = {name: {"wall": clocks, "cpu": clocks} for name in ("plain", "stored")}
    found = {"model": "tiny-mci", "batch_size": 8, "teachers": ["first"], "variants": variants}
    for wanted in (False, True):
        if wanted:
            (tmp_path / step_cost.FILE).write_text(json.dumps(found))
        text = _page(_rows(study[0]), {PLAIN: (0.3,), REINFORCED: (0.4,)}, tmp_path)
        assert ("## Cost of a step" in text) is wanted
        assert ("| stored | 0.500 | 0.500 | 1.250 [1.000, 1.500] |" in text) is wanted
