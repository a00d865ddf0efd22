"""distill: student and control, scales from the manifest, resume and equal bytes, wrong sections."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mobileclip import manifest
from mobileclip.config import Distill, Optimizer, TeacherRef, Training
from mobileclip.data.loader import PairDataset, Recipe, batches
from mobileclip.errors import ConfigError, DataError
from mobileclip.lineage import attribution
from mobileclip.models import zoo
from mobileclip.stages import distill, reinforce
from mobileclip.tracking.protocol import LogTracker
from mobileclip.training.losses import reinforced_loss
from mobileclip.training.validation import retrieval_validation

CONFIG = Distill(
    distill_weight=0.7, control=True, seed=5,
    training=Training(
        steps=4, batch_size=8, optimizer=Optimizer(lr=3e-3, warmup_steps=1), workers=0, log_every=2, checkpoint_every=2
    ),
)  # fmt: skip


class Points(LogTracker):
    """What a tracker is told."""

    def __init__(self):
        self.steps = []

    def log_metrics(self, metrics, *, step=0):
        self.steps.append((step, set(metrics)))


def _run(config, out, data, tracker=None):
    return distill.run(config, out=str(out), tracker=tracker or LogTracker(), data=data)


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def calibrated(tiny_reinforced, tmp_path_factory) -> str:
    """The reinforced dataset with a scale chosen for its teacher."""
    out = str(tmp_path_factory.mktemp("calibrate"))
    content = manifest.read(tiny_reinforced).moved(tiny_reinforced, out)
    manifest.write(out, content.model_copy(update={"scales": {"first": 42.0}}))
    return out


@pytest.fixture(scope="module")
def finished(calibrated, tmp_path_factory):
    out, tracker = tmp_path_factory.mktemp("distill"), Points()
    return out, _run(CONFIG, out, calibrated, tracker), tracker


def test_student_and_control_are_whole_checkpoints_with_their_origin(finished, calibrated):
    out, metrics, _ = finished
    student, control = (zoo.load(f"local-dir:{out}/{name}") for name in ("student", "control"))
    assert student.card["teacher_logit_scales"] == {"first": 42.0}
    assert student.card["dataset"] == manifest.read(calibrated).digest()
    assert student.card["distill_weight"] == 0.7
    assert student.license == "CC0-1.0 AND LIC-first AND MIT"
    assert (control.card["teachers"], control.card["distill_weight"], control.license) == ({}, 0.0, "CC0-1.0")
    owed = [(a.kind, a.name, a.license) for a in attribution.of_card(student.card)]
    data = ("data", "pictures and captions", "CC0-1.0")
    assert owed == [data, ("captioner", "coca", "MIT"), ("teacher", "first", "LIC-first")]
    assert [(a.kind, a.name, a.license) for a in attribution.of_card(control.card)] == [data]
    assert student.sha256 != control.sha256
    assert set(metrics) == {
        f"{m}/{k}" for m in ("student", "control") for k in ("loss", "validation/i2t/r1", "validation/i2t/r10")
    }


def test_history_and_tracker_have_the_same_points(finished):
    out, metrics, tracker = finished
    points = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [(p["model"], p["step"], p["samples"]) for p in points] == [
        ("student", 2, 16), ("student", 4, 32), ("control", 2, 16), ("control", 4, 32),
    ]  # fmt: skip
    assert {"loss", "loss/clip", "loss/distill", "grad_norm", "lr", "logit_scale", "validation/i2t/r1"} <= set(
        points[0]
    )
    assert points[1]["loss"] == metrics["student/loss"]
    assert points[0]["loss"] == pytest.approx(0.3 * points[0]["loss/clip"] + 0.7 * points[0]["loss/distill"], rel=1e-5)
    assert points[2]["loss/distill"] == 0
    assert [step for step, _ in tracker.steps] == [2, 4, 2, 4]
    assert "student/loss/distill" in tracker.steps[0][1]
    assert {"student/samples_per_second", "student/wait_share", "student/teacher_agreement"} <= tracker.steps[0][1]
    assert 0 <= points[0]["teacher_agreement"] <= 1
    timings = json.loads((out / "timings.json").read_text())
    assert {name: [point["step"] for point in row["points"]] for name, row in timings.items()} == {
        "student": [2, 4], "control": [2, 4],
    }  # fmt: skip


def test_the_first_loss_is_the_papers_on_the_first_batch(calibrated, tmp_path):
    """The stage's wiring, by hand: seeds, order, columns, both captions, the calibrated scale."""
    config = CONFIG.model_copy(
        update={"control": False, "training": CONFIG.training.model_copy(update={"steps": 1, "log_every": 1})}
    )
    found = _run(config, tmp_path, calibrated)["student/loss"]
    torch.manual_seed(5)
    clip = zoo.create("tiny-mci")
    recipe = Recipe(clip.preprocess, clip.tokenizer, synthetic=("coca",), teachers=("first",), seed=5)
    dataset = PairDataset(calibrated, manifest.read(calibrated), recipe)
    batch = next(batches(dataset, batch_size=8, first_step=0, last_step=1, seed=5, workers=0))
    model = clip.model.train()
    image = F.normalize(model.encode_image(batch["image"].float() / 255), dim=1)
    texts = [F.normalize(model.encode_text(batch[name]), dim=1) for name in ("text", "synthetic_text")]
    expected = reinforced_loss(
        image, texts, model.logit_scale.exp(), distill_weight=0.7,
        teacher_image_features=[batch["teacher_image.first"]],
        teacher_texts=[[batch["teacher_text.first"]], [batch["teacher_synthetic.first"]]], teacher_logit_scales=[42.0],
    )  # fmt: skip
    assert found == pytest.approx(float(expected["loss"]), rel=1e-4)


def test_again_and_after_a_kill_every_file_is_the_same(finished, calibrated, tmp_path, monkeypatch):
    out, metrics, _ = finished
    first = {n: d for n, d in _files(out).items() if n != "timings.json"}
    assert not any("checkpoint" in name for name in first)  # a complete stage leaves none

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "save", killed)  # after the last step, before the student is there
    with pytest.raises(KeyboardInterrupt):
        _run(CONFIG, tmp_path, calibrated)
    monkeypatch.undo()
    assert {re.sub("run-[0-9a-f]{12}", "RUN", name) for name in _files(tmp_path)} == {
        f"student/checkpoint/RUN/step-000000002/{name}"
        for name in ("model.safetensors", "optimizer.safetensors", "state.json")
    }
    changed = CONFIG.training.model_copy(update={"workers": 1, "checkpoint_every": 3})  # such keys may change
    tracker = Points()
    assert _run(CONFIG.model_copy(update={"training": changed}), tmp_path, calibrated, tracker) == metrics
    assert {n: d for n, d in _files(tmp_path).items() if n != "timings.json"} == first
    assert [step for step, _ in tracker.steps] == [2, 4, 2, 4]
    assert ["student/samples_per_second" in names for _, names in tracker.steps[:2]] == [False, True]


def test_the_number_of_processes_and_workers_changes_nothing(finished, calibrated, tmp_path, monkeypatch):
    out, _, _ = finished
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "2")
    _run(CONFIG, tmp_path, calibrated)
    same = {n: d for n, d in _files(out).items() if n != "timings.json"}
    assert {n: d for n, d in _files(tmp_path).items() if n != "timings.json"} == same


@pytest.mark.parametrize("field", ["descriptions"])
def test_wrong_sections_stop_with_a_sentence(tiny_reinforced, tiny_data, tmp_path, field):
    for changes, data, error, match in (
        (
            {"teachers": ["third"]},
            tiny_reinforced,
            ConfigError,
            r"^distill\.teachers: got 'third', the dataset has \['first'\]\.$",
        ),
        (
            {},
            tiny_data,
            ConfigError,
            r"^distill\.distill_weight: got a value above 0, but the dataset has no teacher embeddings\.$",
        ),
        (
            {"distill_weight": 0.0, "bank_weight": 1.0},
            tiny_data,
            ConfigError,
            r"^distill\.bank_weight: got a value above 0, but the dataset has no teacher embeddings\.$",
        ),
        ({"synthetic": ["blip"]}, tiny_reinforced, DataError, r"^data: no column 'blip' in the manifest"),
        (
            {"caption_field": field, "synthetic": []},
            tiny_reinforced,
            DataError,
            r"^data: teacher 'first' has embeddings of the field 'captions', the training reads 'descriptions'\.$",
        ),
        (
            {"model": "ViT-B-99"},
            tiny_reinforced,
            ConfigError,
            r"^model: unknown architecture 'ViT-B-99', want an open_clip name, timm:IMAGE\+TEXT or one of ",
        ),
    ):
        with pytest.raises(error, match=match):
            _run(CONFIG.model_copy(update=changes), tmp_path / "out", data)
    assert not (tmp_path / "out").exists()


def test_lambda_zero_needs_no_teacher(tiny_data, tmp_path):
    config = CONFIG.model_copy(update={"distill_weight": 0.0, "synthetic": [], "control": False})
    assert _run(config, tmp_path, tiny_data)["student/loss"] > 0


def test_a_teacher_that_calibrate_left_out_has_its_own_scale_and_that_is_said(calibrated, tmp_path, caplog):
    content = manifest.read(calibrated)
    first = content.teachers()[0]
    own = float(content.column(f"{first}.views").spec["logit_scale"])
    left = str(tmp_path / "left")
    manifest.write(left, content.moved(calibrated, left).model_copy(update={"scales": {"another": 2.0}}))
    training = CONFIG.training.model_copy(update={"steps": 1})
    config = CONFIG.model_copy(update={"teachers": [first], "control": False, "training": training})
    _run(config, tmp_path / "out", left)
    assert f"calibrate left out {first}, which is used with its own logit scale {own:g}" in caplog.text
    card = json.loads((tmp_path / "out" / "student" / "model.json").read_text())
    assert card["teacher_logit_scales"] == {first: own}
    caplog.clear()
    _run(config, tmp_path / "calibrated", calibrated)
    assert "left out" not in caplog.text


def test_a_fine_tuned_student_keeps_its_share_of_the_start_and_its_license(calibrated, tmp_path):
    """WiSE-FT: the saved weights lie between those of the start and those the training reached."""
    torch.manual_seed(5)
    start = zoo.create("tiny-mci")
    zoo.save(str(tmp_path / "start"), start, license="apple-amlr", card={})
    config = CONFIG.model_copy(update={"model": f"local-dir:{tmp_path / 'start'}", "control": False})
    for name, share in (("end", 0.0), ("mixed", 0.4)):
        _run(config.model_copy(update={"start_share": share}), tmp_path / name, calibrated)
    end, mixed = (zoo.load("trained:student", trained=str(tmp_path / name)) for name in ("end", "mixed"))
    first, last = start.model.state_dict(), end.model.state_dict()
    assert any(not torch.equal(first[name], value) for name, value in last.items())
    for name, value in mixed.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.4 * first[name] + 0.6 * last[name], rtol=1e-5, atol=1e-6)
    assert "apple-amlr" in end.license
    assert str(tmp_path) not in (tmp_path / "end" / "student" / "model.json").read_text()


def test_a_run_that_began_with_other_weights_is_another(calibrated, tmp_path, monkeypatch):
    """The folder it starts from was made anew between kill and restart: nothing of the first attempt is left."""
    config = CONFIG.model_copy(
        update={"model": f"local-dir:{tmp_path / 'start'}", "control": False, "start_share": 0.5}
    )

    def start(seed):
        torch.manual_seed(seed)
        zoo.save(str(tmp_path / "start"), zoo.create("tiny-mci"), license="MIT", card={})

    def killed(*_, **__):
        raise KeyboardInterrupt

    start(1)
    monkeypatch.setattr(zoo, "save", killed)  # after the last step, before the student is there
    with pytest.raises(KeyboardInterrupt):
        _run(config, tmp_path / "again", calibrated)
    monkeypatch.undo()
    assert list((tmp_path / "again").rglob("state.json"))
    start(2)
    _run(config, tmp_path / "again", calibrated)
    _run(config, tmp_path / "fresh", calibrated)
    again, fresh = ((tmp_path / n / "student" / "open_clip_model.safetensors").read_bytes() for n in ("again", "fresh"))
    assert again == fresh


def test_the_metrics_are_of_the_weights_that_are_saved(tiny_reinforced, tmp_path):
    """The best ones are not the last, and mixed ones are neither."""
    out = str(tmp_path / "data")  # a training shard is what is held out: large enough that scores differ
    content = manifest.read(tiny_reinforced).moved(tiny_reinforced, out)
    first, second = content.split("train")
    shards = [first, second.model_copy(update={"split": "validation"})]
    manifest.write(out, content.model_copy(update={"shards": shards}))
    training = CONFIG.training.model_copy(
        update={"steps": 24, "batch_size": 16, "log_every": 3, "checkpoint_every": 0, "keep_weights": "best"}
    )
    config = CONFIG.model_copy(update={"training": training, "control": False})
    torch.manual_seed(5)
    zoo.save(str(tmp_path / "start"), zoo.create("tiny-mci"), license="MIT", card={})
    mixed = config.model_copy(update={"model": f"local-dir:{tmp_path / 'start'}", "start_share": 0.9})
    for name, section in (("best", config), ("mixed", mixed)):
        metrics = _run(section, tmp_path / name, out)
        clip = zoo.load("trained:student", trained=str(tmp_path / name))
        found = retrieval_validation(clip, out, manifest.read(out), caption_field="captions")()
        assert metrics.items() >= {f"student/validation/{k}": v for k, v in found.items()}.items()
        curve = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        best = max(curve, key=lambda point: (point["validation/i2t/r1"], -point["step"]))
        assert metrics["student/loss"] == best["loss"]
        other = curve[-1] if name == "best" else best  # whose score would be wrong here
        assert found["i2t/r1"] != other["validation/i2t/r1"]


class TestOnlineTeachers:
    """Teachers that run in the step, against their own embeddings stored without rounding."""

    CONFIG = CONFIG.model_copy(
        update={
            "control": False, "feature_weight": 0.3, "distill_weight": 1.0, "bank_weight": 0.5, "bank_size": 20,
            "training": CONFIG.training.model_copy(update={"steps": 6, "log_every": 1}),
        }
    )  # fmt: skip

    @pytest.fixture(scope="class")
    def whole(self, tiny_captioned, tiny_teachers, reinforce_config, tmp_path_factory) -> str:
        """A dataset of two teachers with float32 embeddings."""
        teachers = [TeacherRef(name=name, model=f"trained:{name}") for name in ("first", "second")]
        config = reinforce_config.model_copy(update={"dtype": "float32", "teachers": teachers})
        out = str(tmp_path_factory.mktemp("whole"))
        reinforce.run(config, out=out, tracker=LogTracker(), data=tiny_captioned, teachers=tiny_teachers)
        return out

    def _curve(self, out, data, **changes):
        given = {"teachers": changes.pop("trained")} if "trained" in changes else {}
        config = self.CONFIG.model_copy(update=changes)
        distill.run(config, out=str(out), tracker=LogTracker(), data=data, **given)
        return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]

    def test_the_curve_is_that_of_stored_embeddings(self, whole, tiny_teachers, tmp_path):
        stored = self._curve(tmp_path / "stored", whole)
        online = self._curve(tmp_path / "online", whole, online_teachers=True, trained=tiny_teachers)
        assert len(online) == 6
        for one, other in zip(online, stored, strict=True):
            assert one.keys() == other.keys()
            for key in ("loss", "loss/distill", "loss/feature", "logit_scale", "grad_norm"):
                assert one[key] == pytest.approx(other[key], rel=1e-4), (key, other["step"])
        assert online[0]["teacher_agreement"] == stored[0]["teacher_agreement"]
        cards = [json.loads((tmp_path / n / "student" / "model.json").read_text()) for n in ("stored", "online")]
        assert {**cards[0], "sha256": ""} == {**cards[1], "sha256": ""}

    def test_a_bit_of_them_changes_the_curve(self, whole, tiny_teachers, tmp_path):
        """What the comparison above can see: one teacher less."""
        online = self._curve(
            tmp_path, whole, online_teachers=True, trained=tiny_teachers, teachers=["first"], control=True
        )
        stored = self._curve(tmp_path / "stored", whole)
        assert abs(online[0]["loss/distill"] - stored[0]["loss/distill"]) > 1e-3
        assert online[-1]["model"] == "control"  # which has no teacher, on the same batches
        assert online[-1]["loss/distill"] == 0

    @pytest.mark.parametrize(
        ("given", "error", "match"),
        [
            (False, ConfigError, "cannot be loaded: model: got 'trained:first', but there is no input folder with "),
            (True, DataError, r"has weights [0-9a-f]{12}, the stored embeddings are of [0-9a-f]{12}\.$"),
        ],
    )
    def test_other_teachers_or_none_are_refused(self, whole, tmp_path, given, error, match):
        torch.manual_seed(99)
        zoo.save(str(tmp_path / "first"), zoo.create("tiny-mci"), license="CC0-1.0", card={})
        trained = {"trained": str(tmp_path)} if given else {}
        with pytest.raises(error, match=f"^distill.online_teachers: teacher 'first' {match}") as caught:
            self._curve(tmp_path / "out", whole, online_teachers=True, **trained)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_the_control_may_have_a_learning_rate_of_its_own(tiny_reinforced, tmp_path):
    training = CONFIG.training.model_copy(update={"steps": 2, "log_every": 1})
    training = training.model_copy(update={"optimizer": Optimizer(lr=0.004, lr_end=0.0, warmup_steps=1)})
    config = CONFIG.model_copy(update={"control": True, "training": training, "control_lr": 0.001})
    distill.run(config, out=str(tmp_path), tracker=LogTracker(), data=tiny_reinforced)
    points = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [p["lr"] / 4 for p in points if p["model"] == "student"] == pytest.approx(
        [p["lr"] for p in points if p["model"] == "control"]
    )
    assert points[0]["lr"] == pytest.approx(0.004)
