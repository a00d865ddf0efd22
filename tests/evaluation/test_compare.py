"""`mobileclip compare`: pairs against evaluate's own verdicts, seeds and tasks against scipy."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats

from mobileclip import storage
from mobileclip.__main__ import main
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation.compare import compare
from mobileclip.evaluation.suite import run as suite
from mobileclip.evaluation.suite import tasks as registry
from tests.evaluation import small_run
from tests.models.perturbed import perturbed_clip
from tests.stages import shapes


@pytest.fixture(scope="module")
def student():
    return small_run.evaluated()[0]


@pytest.fixture(scope="module")
def control(student, tmp_path_factory):
    """The same evaluation with the control in the student's place."""
    folder = tmp_path_factory.mktemp("control")
    results = json.loads((student / "results.json").read_text())
    for scope in results["scopes"]:
        for row in scope["metrics"].values():
            row["student"] = row["control"]
    (folder / "results.json").write_text(json.dumps(results))
    with (folder / "samples.jsonl").open("w") as file:
        for line in (student / "samples.jsonl").read_text().splitlines():
            row = json.loads(line)
            for answer in (row["retrieval"], *row["zero_shot"].values()):
                answer["student"] = answer["control"]
            file.write(json.dumps(row) + "\n")
    return folder


def test_a_pair_says_what_evaluate_said_of_student_and_control(student, control):
    """Every metric of all samples: the table of samples gives interval and verdict again, years later."""
    results = json.loads((student / "results.json").read_text())
    rows = {row.metric: row for row in compare([str(student)], [str(control)])}
    whole = results["scopes"][0]["metrics"]
    assert {name for name in rows if "slice/" not in name} == {f"student/{metric}" for metric in whole}
    for metric, wanted in whole.items():
        row, delta = rows[f"student/{metric}"], wanted["delta"]
        assert row.verdict == delta["verdict"], metric
        assert (row.difference, row.low, row.high) == pytest.approx(
            (delta["value"], delta["low"], delta["high"]), abs=3e-6
        )
    inside = rows["slice/true/student/zero_shot/group/top1"]
    assert inside.difference == results["scopes"][2]["metrics"]["zero_shot/group/top1"]["delta"]["value"]
    assert inside.verdict == "better"
    assert rows["slice/true/student/retrieval/i2t/r1"].verdict == "not paired"


def test_a_model_is_not_better_than_itself(student):
    rows = compare([str(student)], [str(student)])
    assert {row.verdict for row in rows} == {"no evidence", "not paired"}
    assert {row.difference for row in rows} == {0.0}


def write_seeds(folder, template, values):
    """Evaluations of one recipe, trained with several seeds."""
    places = []
    for number, (top1, ece) in enumerate(values):
        place = folder / str(number)
        place.mkdir(parents=True)
        shutil.copy(template / "samples.jsonl", place)
        metrics = {
            "zero_shot/group/top1": {"higher_is_better": True, "student": {"value": top1}},
            "zero_shot/group/ece": {"higher_is_better": False, "student": {"value": ece}},
        }
        (place / "results.json").write_text(json.dumps({"scopes": [{"name": "", "metrics": metrics}]}))
        places.append(str(place))
    return places


def test_seeds_are_compared_by_students_t(student, tmp_path):
    ours = [(0.62, 0.10), (0.60, 0.12), (0.66, 0.09), (0.64, 0.11)]
    theirs = [(0.58, 0.05), (0.57, 0.06), (0.61, 0.04), (0.60, 0.04)]
    sides = [write_seeds(tmp_path / name, student, values) for name, values in (("a", ours), ("b", theirs))]
    top1, ece = compare(*sides, confidence=0.9)
    for column, row in enumerate((top1, ece)):
        found = stats.ttest_rel([v[column] for v in ours], [v[column] for v in theirs]).confidence_interval(0.9)
        assert (row.low, row.high) == pytest.approx((found.low, found.high), abs=1e-6)
        assert row.ours == pytest.approx(np.mean([v[column] for v in ours]))
    assert (top1.verdict, ece.verdict) == ("better", "worse")
    again = compare(sides[0][:2], sides[1][:2], confidence=0.999)
    assert {row.verdict for row in again} == {"no evidence"}


REGISTRY = """
bootstrap: 2000
tasks:
  - {key: colors, name: Colors, layout: imagefolder, folder: colors, templates: ["a {c}"]}
  - {key: shapes, name: Shapes, layout: imagefolder, folder: shapes, templates: ["a {c}"]}
  - {key: beside, name: Beside, layout: imagefolder, folder: shapes, templates: ["the {c}"], average: false}
"""


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    """Outputs of the suite for two models, the second one on one task fewer and in another order."""
    root = tmp_path_factory.mktemp("suites")
    for color, code in shapes.COLORS.items():
        for shape in shapes.SHAPES:
            for size in (24, 32, 40):
                picture = shapes.draw(code, shape, size)
                for folder, name in (("colors", color), ("shapes", shape)):
                    storage.write_bytes(root / folder / name / f"{color}-{shape}-{size}.png", picture)
    (root / "tasks.yaml").write_text(REGISTRY)
    tasks = registry.read(root / "tasks.yaml")
    options = {"data": str(root), "require": True, "batch_size": 16, "seed": 5, "confidence": 0.95}
    for seed, keys in ((1, []), (2, ["shapes", "colors"])):
        clip = dataclasses.replace(perturbed_clip("tiny-mci", seed), sha256=f"{seed}" * 64)
        part = suite.select(tasks, keys)
        part = part.model_copy(update={"tasks": part.tasks[::-1]}) if keys else part
        suite.run(clip, part, out=str(root / str(seed)), **options)
    return root


def test_tasks_are_paired_picture_by_picture(suites):
    folders = [str(suites / name) for name in ("1", "2")]
    rows = {row.metric: row for row in compare(folders[:1], folders[1:])}
    assert set(rows) == {"colors", "shapes", "average of 2 tasks"}
    hits = [load_file(suites / name / "pairs.safetensors") for name in ("1", "2")]
    for key in ("colors", "shapes"):
        a, b = (found[f"{key}/outcomes"][:, 0] for found in hits)
        assert rows[key].ours == pytest.approx(a.mean(), abs=1e-6)
        found = stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=4000, random_state=0)
        ends = (found.confidence_interval.low, found.confidence_interval.high)
        assert (rows[key].low, rows[key].high) == pytest.approx(ends, abs=0.25 * float(found.standard_error) + 1e-6)
        assert rows[key].low < rows[key].high
    average = rows["average of 2 tasks"]
    assert average.difference == pytest.approx((rows["colors"].difference + rows["shapes"].difference) / 2, abs=1e-6)
    assert average.low < average.difference < average.high


def test_the_command_prints_and_writes_it(suites, student, control, tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = ["compare", str(student), "--against", str(control), "--out", str(out)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "student/zero_shot/group/top1" in said
    assert "better" in said
    first = out.read_bytes()
    assert len(json.loads(first)["ours"][0]) == 64
    assert main(arguments) == 0
    assert out.read_bytes() == first
    assert main(["compare", str(suites / "1"), "--against", str(suites / "2")]) == 0
    assert "average of 2 tasks" in capsys.readouterr().out


def test_what_does_not_compare_is_one_sentence(suites, student, control, tmp_path, capsys):
    one, two = str(student), str(suites / "1")
    with pytest.raises(ConfigError, match="got 2 folders against 1"):
        compare([one, one], [str(control)])
    with pytest.raises(DataError, match=r"holds suite\.json, .* results\.json"):
        compare([one], [two])
    with pytest.raises(DataError, match=r"no results\.json or suite\.json"):
        compare([one], [str(tmp_path)])
    with pytest.raises(ConfigError, match="--confidence got 95"):
        compare([one], [str(control)], confidence=95)
    fewer = tmp_path / "fewer"
    shutil.copytree(control, fewer)
    lines = (fewer / "samples.jsonl").read_text().splitlines()
    (fewer / "samples.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="was scored on other samples"):
        compare([one], [str(fewer)])
    (fewer / "results.json").write_text("{}")
    with pytest.raises(DataError, match="damaged or of another version"):
        compare([one], [str(fewer)])
    assert main(["compare", one, "--against", str(tmp_path / "none"), "--out", str(tmp_path / "rows.json")]) == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "rows.json").exists()
