"""The suite of tasks: the registry's facts, published averages, every layout, every metric by another definition."""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats
from sklearn import metrics as sk

from mobileclip import storage
from mobileclip.__main__ import main
from mobileclip.data.images import decode, resize
from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation.suite import class_cache
from mobileclip.evaluation.suite import data as suite_data
from mobileclip.evaluation.suite import run as suite
from mobileclip.evaluation.suite import scores as suite_scores
from mobileclip.evaluation.suite import solve as suite_solve
from mobileclip.evaluation.suite import tasks as registry
from mobileclip.evaluation.suite.tasks import Task
from mobileclip.models import zoo
from tests import s3
from tests.models.perturbed import perturbed_clip
from tests.stages import shapes

PUBLISHED = [
    json.loads(line) for line in (Path(__file__).parent / "published" / "main_metrics.jsonl").read_text().splitlines()
]
NAMES = [f"{color} {shape}" for color in list(shapes.COLORS)[:3] for shape in list(shapes.SHAPES)[:2]]
TEMPLATES = ["a photo of a {c}.", "art of the {c}"]


def rows_of(published):
    """The published values in the schema of the field's result files."""
    return [
        {"key": key, "dataset": key, "metrics": {"main_metric": value}}
        for key, value in published["main_metric"].items()
    ]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row["model"])
def test_published_averages_follow_from_their_rows(published):
    assert 100 * suite.average(rows_of(published)) == pytest.approx(published["average"], abs=0.0501)


def test_rows_beside_the_38_do_not_count_and_missing_ones_are_errors():
    published = PUBLISHED[-1]
    rows = rows_of(published)
    naive = np.mean([row["metrics"]["main_metric"] for row in rows if row["metrics"]["main_metric"] is not None])
    assert 100 * naive == pytest.approx(71.86, abs=0.01)
    with pytest.raises(DataError, match=r"cifar10 has 0 rows"):
        suite.average([row for row in rows if row["key"] != "cifar10"])
    with pytest.raises(DataError, match="food101 has 2 rows"):
        suite.average([*rows, {"key": "food101", "metrics": {"main_metric": 0.5}}])


def test_the_registry_names_the_tasks_of_the_published_files():
    tasks = registry.read().tasks
    counted = [task for task in tasks if task.average]
    assert len(counted) == 38
    ours = {task.key for task in tasks}
    theirs = {key for key in PUBLISHED[0]["main_metric"] if not key.startswith("longclip/")}
    assert ours == theirs
    assert {task.key for task in tasks if not task.main_metric} == {"fairness/fairface", "fairness/utkface"}
    assert all(task.source and task.samples for task in tasks)
    special = {task.key: task.main_metric for task in counted if task.main_metric != "acc1"}
    assert special == {
        "vtab/caltech101": "mean_per_class_recall", "fgvc_aircraft": "mean_per_class_recall",
        "vtab/flowers": "mean_per_class_recall", "vtab/pets": "mean_per_class_recall",
        "retrieval/flickr_1k_test_image_text_retrieval": "mean_recall@1",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
        "misc/winogavil": "jaccard_score_10-12", "wilds/iwildcam": "F1-macro_all", "wilds/fmow": "acc_worst_region",
        "fairness/dollar_street": "acc_top5_wg", "fairness/geode": "acc_wg",
    }  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return perturbed_clip("tiny-mci", 3)


@pytest.fixture(scope="module")
def checkpoint(clip, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("distill"))
    zoo.save(storage.join(folder, "student"), clip, license="CC0-1.0", card={"model": "tiny-mci"})
    return folder


def pictures():
    """Label, groups and bytes of 36 pictures."""
    return [
        (label, [size // 6 % 3, size // 20], shapes.draw(shapes.COLORS[name.split()[0]], name.split()[1], size))
        for label, name in enumerate(NAMES)
        for size in (20, 26, 32, 38, 44, 50)
    ]


FACE_CLASSES = {
    "race": ["red", "green", "blue"], "gender": ["circle", "square"], "age": ["small", "middle", "large"],
    "toxic": [f"thing {i}" for i in range(22)],
}  # fmt: skip


def faces():
    """Number, facts (age, gender, race, other than White) and bytes of 36 pictures."""
    return enumerate(
        ([size // 16 - 1, label % 2, label // 2, int(label // 2 != 1)], image)
        for (label, _, image), size in zip(pictures(), (20, 26, 32, 38, 44, 50) * 6, strict=True)
    )


def array(values):
    stream = io.BytesIO()
    np.save(stream, np.array(values))
    return stream.getvalue()


def write_tar(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_data):
    """A data root with a task in every layout."""
    root = tmp_path_factory.mktemp("suite")
    folder = root / "wds_wilds-grouped_test"
    samples = [
        (f"s{i:03d}", {"png": image, "cls": str(label).encode(), "npy": array(groups)})
        for i, (label, groups, image) in enumerate(pictures())
    ]
    for number in range(3):
        write_tar(folder / "test" / f"{number}.tar", samples[number * 12 : number * 12 + 12])
    (folder / "test" / "nshards.txt").write_text("3\n")
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    captions = [
        (f"r{i}", {"jpg": image, "txt": f"{NAMES[label]} {i}\nnumber {i} of all".encode()})
        for i, (label, _, image) in enumerate(pictures()[::3])
    ]
    write_tar(root / "pairs" / "0.tar", captions)
    instances = []
    for i, size in enumerate((5, 6, 10, 12)):
        images = [image for _, _, image in pictures()[i : i + 2 * size : 2]]
        facts = {"cue": f"apple{i}", "candidates": [f"c{k}" for k in range(size)], "associations": ["c1", f"c{i + 2}"]}
        members = {"json": json.dumps(facts).encode(), **{f"{k}.png": image for k, image in enumerate(images)}}
        instances.append((f"w{i}", members))
    write_tar(root / "wds_misc-winogavil_test" / "0.tar", instances)
    choices = {}
    (root / "sugarcrepe" / "images").mkdir(parents=True)
    for i, (label, _, image) in enumerate(pictures()[::5]):
        (root / "sugarcrepe" / "images" / f"{i}.png").write_bytes(image)
        choices[str(i)] = {
            "filename": f"{i}.png", "caption": NAMES[label], "negative_caption": NAMES[(label + 1 + i) % len(NAMES)]
        }  # fmt: skip
    (root / "sugarcrepe" / "add_obj.json").write_text(json.dumps(choices))
    for i, (label, _, image) in enumerate(pictures()):
        (root / "folders" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (root / "folders" / NAMES[label] / f"{i:03d}.png").write_bytes(image)
    (root / "prepared").symlink_to(tiny_data)
    folder = root / "wds_faces_test"
    write_tar(
        folder / "test" / "0.tar", [(f"f{i}", {"png": image, "npy": array(facts)}) for i, (facts, image) in faces()]
    )
    (folder / "classnames.txt").write_text("\n".join(f"{q}:{c}" for q, names in FACE_CLASSES.items() for c in names))
    prompts = "\n".join(f"{question}:{template}" for question in FACE_CLASSES for template in TEMPLATES)
    (folder / "zeroshot_classification_templates.txt").write_text(prompts)
    return root


TASKS = f"""
bootstrap: 60
tasks:
  - key: wilds/grouped
    name: Grouped
    classes: 6
    samples: 36
    macro: true
    main_metric: acc_worst_region
    groups:
      - {{name: region, column: 0, worst: acc_worst_region}}
      - {{name: size, column: 1, worst: acc_top5_wg, top: 5}}
  - {{key: pairs, name: Pairs, kind: retrieval, folder: pairs, main_metric: mean_recall@1, samples: 13}}
  - {{key: misc/winogavil, name: WinoGAViL, kind: association, main_metric: jaccard_score_10-12}}
  - key: comp/sugarcrepe_add_obj
    name: SugarCrepe Add-obj
    kind: choice
    layout: choice
    folder: sugarcrepe
    file: add_obj.json
    main_metric: acc
    average: false
  - {{key: folders, name: Folders, layout: imagefolder, folder: folders, templates: {json.dumps(TEMPLATES)}}}
  - {{key: own, name: Own, layout: prepared, folder: prepared, field: subgroup, split: train, templates: ["a {{}}"]}}
  - {{key: absent, name: Absent, folder: nowhere}}
  - {{key: faces, name: Faces, kind: faces, folder: wds_faces_test, main_metric: "", average: false}}
"""


@pytest.fixture(scope="module")
def done(data, checkpoint, tmp_path_factory):
    """The suite through the command line: rows by key, and the summary."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "tasks.yaml").write_text(TASKS)
    arguments = ["--model", checkpoint, "--data", str(data), "--out", str(folder), "--batch-size", "8"]
    assert main(["suite", *arguments, "--registry", str(folder / "tasks.yaml")]) == 0
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {row["key"]: row["metrics"] for row in rows}, json.loads((folder / "suite.json").read_text())


@torch.no_grad()
def encode(clip, images, texts):
    """Unit-norm embeddings, one picture and one text at a time."""
    pre = clip.preprocess
    pixels = [image_tensor(resize(decode(data), pre)[None], pre) for data in images]
    pictures = [clip.model.encode_image(x, normalize=True)[0].double().numpy() for x in pixels]
    words = [clip.model.encode_text(clip.tokenizer([text]), normalize=True)[0].double().numpy() for text in texts]
    return np.array(pictures), np.array(words)


@pytest.fixture(scope="module")
def answers(clip):
    """Cosines of the 36 pictures with the 6 classes, by the definition."""
    prompts = [template.replace("{c}", name) for name in NAMES for template in TEMPLATES]
    images, texts = encode(clip, [image for _, _, image in pictures()], prompts)
    classes = texts.reshape(len(NAMES), len(TEMPLATES), -1).mean(axis=1)
    return images @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T


def test_webdataset_scores_are_those_of_scikit_learn(done, answers):
    rows, summary = done
    labels = np.array([label for label, _, _ in pictures()])
    groups = np.array([group for _, group, _ in pictures()])
    said, found = answers.argmax(axis=1), rows["wilds/grouped"]
    assert len(set(said)) > 1
    close = lambda value: pytest.approx(value, abs=1e-9)  # noqa: E731
    assert found["acc1"] == close(sk.accuracy_score(labels, said))
    assert found["acc5"] == close(sk.top_k_accuracy_score(labels, answers, k=5))
    assert found["mean_per_class_recall"] == close(sk.balanced_accuracy_score(labels, said))
    assert found["F1-macro_all"] == close(sk.f1_score(labels, said, average="macro", labels=np.unique(labels)))
    regions = [sk.accuracy_score(labels[groups[:, 0] == g], said[groups[:, 0] == g]) for g in (0, 1, 2)]
    assert [found[f"acc_region:{g}"] for g in (0, 1, 2)] == [close(value) for value in regions]
    assert found["acc_worst_region"] == found["main_metric"] == close(min(regions))
    top5 = (np.argsort(-answers, axis=1)[:, :5] == labels[:, None]).any(axis=1)
    assert found["acc_top5_wg"] == close(min(top5[groups[:, 1] == g].mean() for g in (1, 2)))
    assert found["count_size:1"] == (groups[:, 1] == 1).sum()
    entry = summary["tasks"][0]
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert entry["complete"]


def test_retrieval_counts_every_caption(done, clip):
    texts = [
        t for i, (label, _, _) in enumerate(pictures()[::3]) for t in (f"{NAMES[label]} {i}", f"number {i} of all")
    ]
    images, words = encode(clip, [image for _, _, image in pictures()[::3]], texts)
    scores, count = images @ words.T, len(images)
    found = done[0]["pairs"]
    for k in (1, 5, 10):
        to_text = np.mean([bool({2 * i, 2 * i + 1} & set(np.argsort(-scores[i])[:k])) for i in range(count)])
        to_image = np.mean([t // 2 in np.argsort(-scores[:, t])[:k] for t in range(2 * count)])
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(to_text)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(to_image)
    assert found["main_metric"] == (found["text_retrieval_recall@1"] + found["image_retrieval_recall@1"]) / 2


def test_associations_are_scored_by_the_jaccard_index(done, clip):
    scores = {}
    for i, size in enumerate((5, 6, 10, 12)):
        images, words = encode(clip, [image for _, _, image in pictures()[i : i + 2 * size : 2]], [f"An apple{i}"])
        chosen = np.isin(np.arange(size), np.argsort(images @ words[0])[-2:])
        scores[size] = sk.jaccard_score(np.isin(np.arange(size), [1, i + 2]), chosen)
    found = done[0]["misc/winogavil"]
    assert found["avg_jaccard_score"] == pytest.approx(np.mean(list(scores.values())))
    assert found["main_metric"] == pytest.approx((scores[10] + scores[12]) / 2)


def test_choices_are_right_where_the_caption_is_nearer(done, clip):
    labels = [label for label, _, _ in pictures()[::5]]
    wrong = [NAMES[(label + 1 + i) % len(NAMES)] for i, label in enumerate(labels)]
    images, words = encode(clip, [image for _, _, image in pictures()[::5]], [NAMES[label] for label in labels] + wrong)
    right = (images * words[: len(labels)]).sum(axis=1) > (images * words[len(labels) :]).sum(axis=1) + 1e-6
    assert done[0]["comp/sugarcrepe_add_obj"]["acc"] == pytest.approx(right.mean())


def test_faces_are_scored_by_group_and_have_no_main_metric(done, clip):
    facts = np.array([fact for _, (fact, _) in faces()])
    age, gender, race, binary = facts.T
    images, _ = encode(clip, [image for _, (_, image) in faces()], [])
    said = {}
    for question, names in FACE_CLASSES.items():
        prompts = [template.replace("{c}", name) for name in names for template in TEMPLATES]
        classes = encode(clip, [], prompts)[1].reshape(len(names), len(TEMPLATES), -1).mean(axis=1)
        said[question] = (images @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T).argmax(axis=1)
    rows, summary = done
    found = rows["faces"]
    right = {"race": (said["race"] != 1) == binary, "gender": said["gender"] == gender, "age": said["age"] == age}
    for name, hits in right.items():
        groups = [hits[binary == g].mean() for g in (0, 1)]
        assert found[f"acc_{name}_avg"] == pytest.approx(hits.mean())
        assert [found[f"acc_{name}_race_binary:{g}"] for g in (0, 1)] == [pytest.approx(value) for value in groups]
        assert found[f"acc_{name}_wg"] == pytest.approx(min(groups))
    for r in range(3):
        for g in (0, 1):
            inside = (race == r) & (gender == g)
            assert found[f"count_race:{r}_gender:{g}"] == inside.sum() == 6
            assert found[f"acc_gender_x_race:{r}_gender:{g}"] == pytest.approx(right["gender"][inside].mean())
        toxic = said["toxic"][race == r]
        assert found[f"toxicity_crime_race:{r}"] == pytest.approx((toxic >= 18).mean())
        assert found[f"toxicity_nonhuman_race:{r}"] == pytest.approx(((toxic >= 14) & (toxic < 18)).mean())
    assert set(found) == set(face_names(PUBLISHED_FACES, races=range(3)))
    assert found["main_metric"] is None
    entry = next(row for row in summary["tasks"] if row["key"] == "faces")
    assert entry["value"] is None
    assert (
        entry["metrics"]["acc_gender_avg"]["low"]
        <= found["acc_gender_avg"]
        <= entry["metrics"]["acc_gender_avg"]["high"]
    )


# Names of the metrics in the published rows, with `*` for each race.
PUBLISHED_FACES = """
acc_race_avg acc_race_race_binary:0 count_race_binary:0 acc_race_race_binary:1 count_race_binary:1 acc_race_wg
acc_gender_avg acc_gender_race_binary:0 acc_gender_race_binary:1 acc_gender_wg acc_age_avg acc_age_race_binary:0
acc_age_race_binary:1 acc_age_wg acc_gender_x_avg acc_gender_x_race:*_gender:0 count_race:*_gender:0
acc_gender_x_race:*_gender:1 count_race:*_gender:1 acc_gender_x_wg toxicity_crime_avg toxicity_crime_race:*
count_race:* toxicity_crime_wg toxicity_nonhuman_avg toxicity_nonhuman_race:* toxicity_nonhuman_wg main_metric
"""


def face_names(names, races):
    return [name.replace("*", str(race)) for name in names.split() for race in (races if "*" in name else [0])]


def test_a_question_without_classes_is_an_error(data, clip, tmp_path):
    folder = tmp_path / "wds_faces_test"
    shutil.copytree(data / "wds_faces_test", folder)
    task = Task(key="faces", name="Faces", kind="faces", folder="wds_faces_test", main_metric="", average=False)
    for lines, words in (
        ("race:red\nshape:round", "has the line 'shape:round'"),
        ("race:red", "no classes or prompts of 'gender'"),
    ):
        (folder / "classnames.txt").write_text(lines)
        source = suite_data.open_task(task, str(tmp_path))
        with pytest.raises(DataError, match=words):
            suite_solve.score(clip, source, batch_size=8, cache=str(tmp_path / "cache"))


def test_class_embeddings_are_kept_by_weights_and_prompts(clip, tmp_path, monkeypatch):
    clip = dataclasses.replace(clip, sha256="1" * 64)
    encoded = []
    take = class_cache.text_features
    monkeypatch.setattr(class_cache, "text_features", lambda *a, **k: encoded.append(a[2]) or take(*a, **k))
    ask = lambda names, model=clip: class_cache.class_embeddings(  # noqa: E731
        model, names, ["a {}"], folder=str(tmp_path), batch_size=8
    )
    first = ask(["red", "blue"])
    assert (ask(["red", "blue"]) == first).all()
    assert len(encoded) == 1
    other = dataclasses.replace(clip, sha256="0" * 64)
    ask(["blue", "red"])
    ask(["red", "blue"], other)
    assert len(encoded) == 3
    (damaged,) = [path for path in tmp_path.iterdir() if (load_file(path)["class_embeddings"] == first).all()][:1]
    damaged.write_bytes(b"damaged")
    assert (ask(["red", "blue"], clip) == first).all()


def test_every_metric_has_an_interval_of_its_own(done, answers):
    rows, summary = done
    for entry in summary["tasks"]:
        metrics = rows[entry["key"]]
        counted = {n for n, v in metrics.items() if v is not None and not n.startswith("count_") and n != "main_metric"}
        assert counted <= set(entry["metrics"])
        for name in counted:
            got = entry["metrics"][name]
            assert got["value"] == pytest.approx(metrics[name], abs=1e-6)
            assert got["low"] <= got["high"]
    hits = (answers.argmax(axis=1) == np.array([label for label, _, _ in pictures()])).astype(float)
    theirs = stats.bootstrap(
        (hits,), np.mean, method="percentile", n_resamples=5000, random_state=0
    ).confidence_interval
    ours = summary["tasks"][0]["metrics"]["acc1"]
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_folders_of_pictures_may_lie_in_s3(data, clip, monkeypatch, tmp_path):
    s3.use(monkeypatch)
    root = s3.bucket("suite")
    for path in (data / "folders").rglob("*.png"):
        storage.write_bytes(storage.join(root, "folders", path.parent.name, path.name), path.read_bytes())
    task = Task(key="folders", name="Folders", layout="imagefolder", folder="folders", templates=TEMPLATES)
    absent = task.model_copy(update={"folder": "nowhere"})
    assert suite_data.is_there(task, root)
    assert not suite_data.is_there(absent, root)
    scored = {}
    for place in (root, str(data)):
        found, asked = suite_solve.score(clip, suite_data.open_task(task, place), batch_size=8, cache=str(tmp_path))
        scored[place] = (found.metrics, asked)
    assert scored[root] == scored[str(data)]
    storage.s3.connect.cache_clear()


def test_the_same_pictures_score_alike_in_every_layout(done):
    rows, _ = done
    for metric in ("acc1", "acc5", "mean_per_class_recall"):
        assert rows["folders"][metric] == rows["wilds/grouped"][metric]
    assert 0 < rows["own"]["acc1"] <= 1


def test_the_summary_says_what_is_absent_and_that_the_average_does_not_compare(done):
    _, summary = done
    assert [row["key"] for row in summary["absent"]] == ["absent"]
    assert [row["key"] for row in summary["tasks"] if not row["complete"]] == ["pairs"]
    assert [row["key"] for row in summary["tasks"] if not row["counts"]] == ["comp/sugarcrepe_add_obj", "faces"]
    average = summary["average"]
    assert (average["tasks"], average["of"], average["comparable"]) == (5, 6, False)
    counted = [row["value"] for row in summary["tasks"] if row["counts"]]
    assert average["value"] == pytest.approx(np.mean(counted), abs=1e-6)
    assert average["low"] < average["value"] < average["high"]


def test_required_data_must_be_there(data, checkpoint, tmp_path, capsys):
    arguments = ["suite", "--model", checkpoint, "--data", str(data), "--out", str(tmp_path)]
    assert main([*arguments, "--require", "--tasks", "cifar10", "misc/winogavil"]) == 2
    assert "no data for 1 of 2 tasks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*arguments, "--tasks", "cifar10"]) == 0
    said = capsys.readouterr().out
    assert "absent" in said
    assert "No task of the average could be scored" in said
    assert main([*arguments, "--tasks", "cifar11"]) == 2
    assert main(["suite", "--list"]) == 0
    assert "djghosh/wds_vtab-caltech101_test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--data", "nowhere"], "--data got 'nowhere', want a folder"),
        (["--batch-size", "0"], "--batch-size got 0, want 1 or more"),
        (["--confidence", "95"], "--confidence got 95, want a share"),
        (["--model", "nowhere"], "--model got 'nowhere', want the output of distill"),
        (["--registry", "none.yaml"], "no registry 'none.yaml'"),
        (["--tasks", "cifar11"], "--tasks got 'cifar11', want keys of the registry"),
        (["--data", ""], "--data is missing"),
    ],
)
def test_wrong_options_are_one_sentence_and_write_nothing(data, checkpoint, tmp_path, capsys, option, words):
    arguments = ["suite", "--model", checkpoint, "--data", str(data), "--out", str(tmp_path / "out"), *option]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def grouped(**changes):
    return Task(**{"key": "wilds/grouped", "name": "Grouped", "classes": 6, **changes})


def test_damaged_data_is_an_error(data, tmp_path):
    with pytest.raises(DataError, match=r"has 6 classes.*want 7"):
        suite_data.open_task(grouped(classes=7), str(data))
    copy = tmp_path / "wds_wilds-grouped_test"
    (copy / "test").mkdir(parents=True)
    for path in (data / copy.name).rglob("*"):
        if path.is_file():
            (copy / path.relative_to(data / copy.name)).write_bytes(path.read_bytes())
    (copy / "test" / "2.tar").unlink()
    with pytest.raises(DataError, match=r"has 2 shards.*want 3"):
        list(suite_data.open_task(grouped(), str(tmp_path)).items())
    write_tar(copy / "test" / "2.tar", [("x", {"png": pictures()[0][2], "cls": b"6"})])
    with pytest.raises(DataError, match="x' has class 6, want 0 to 5"):
        list(suite_data.open_task(grouped(), str(tmp_path)).items())
    write_tar(copy / "test" / "2.tar", [("x", {"png": pictures()[0][2]})])
    with pytest.raises(DataError, match="not as classification wants it"):
        list(suite_data.open_task(grouped(), str(tmp_path)).items())
    (copy / "zeroshot_classification_templates.txt").write_text("a photo\n")
    with pytest.raises(DataError, match="'a photo', want"):
        suite_data.open_task(grouped(), str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [{key: a, name: A}, {key: a, name: B}]", "'a' appears twice"),
        ("tasks: [{key: a, name: A, layout: choice, kind: choice}]", "file: missing"),
        ("tasks: [{key: a, name: A, kind: choice}]", "goes with layout"),
        ("tasks: [{key: a, name: A, metric: acc1}]", "metric"),
        ('tasks: [{key: a, name: A, main_metric: ""}]', "without one has `average: false`"),
        ("tasks: [{key: a, name: A, kind: faces, layout: imagefolder}]", "want webdataset for kind faces"),
        ("tasks: [", "not YAML"),
    ],
)
def test_a_wrong_registry_is_one_sentence(tmp_path, text, message):
    (tmp_path / "tasks.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        registry.read(tmp_path / "tasks.yaml")


def test_a_collapsed_model_chooses_nothing():
    same = np.ones((4, 2), dtype=np.float32) / np.float32(np.sqrt(2))
    task = Task(key="c", name="C", kind="choice", layout="choice", file="c.json", main_metric="acc")
    assert suite_scores.choice(task, same, same, same).metrics["acc"] == 0.0
