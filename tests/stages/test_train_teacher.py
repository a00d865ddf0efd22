"""train_teacher: learns, resumes to the same bytes, locks towers, inherits licenses, wrong inputs."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mobileclip import manifest, storage
from mobileclip.config import Optimizer, Teacher, Training, TrainTeacher, check_section
from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import ConfigError, DataError
from mobileclip.lineage import attribution
from mobileclip.models import zoo
from mobileclip.stages import train_teacher
from mobileclip.tracking.protocol import LogTracker
from mobileclip.training.locked import LockedHeads
from tests import s3

WORDS = (
    "a", "of", "on", "drawing", "white", "red", "green", "blue", "yellow", "circle", "square", "triangle", "cross",
)  # fmt: skip
PLAIN = {"model": "tiny-mci", "image_weights": "", "text_weights": ""}
SHORT = Training(
    steps=6, batch_size=8, optimizer=Optimizer(lr=3e-3, warmup_steps=1), workers=0, log_every=3, checkpoint_every=0
)


def _run(config, out, data, **inputs):
    return train_teacher.run(config, out=str(out), tracker=LogTracker(), data=data, **inputs)


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


class TestFromScratch:
    CONFIG = TrainTeacher(teachers=[Teacher(name="small", model="tiny-mci", training=SHORT)], seed=3)

    @pytest.fixture(scope="class")
    def finished(self, tiny_data, tmp_path_factory):
        out = tmp_path_factory.mktemp("teachers")
        return out, _run(self.CONFIG, out, tiny_data)

    def test_a_checkpoint_with_its_license_and_origin(self, finished, tiny_data):
        out, metrics = finished
        clip = zoo.load("trained:small", trained=str(out))
        assert clip.license == "CC0-1.0"
        assert clip.card["dataset"] == manifest.read(tiny_data).digest()
        assert set(metrics) == {"small/loss", "small/validation/i2t/r1", "small/validation/i2t/r10"}
        history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        assert [p["step"] for p in history] == [3, 6]
        assert history[-1]["loss"] == metrics["small/loss"]

    def test_equal_runs_give_equal_bytes_and_another_seed_does_not(self, finished, tiny_data, tmp_path):
        out, metrics = finished
        assert _run(self.CONFIG, tmp_path / "a", tiny_data) == metrics
        assert {n: d for n, d in _files(out).items() if n != "timings.json"} == {
            n: d for n, d in _files(tmp_path / "a").items() if n != "timings.json"
        }
        other = self.CONFIG.model_copy(update={"seed": 4})
        assert _run(other, tmp_path / "b", tiny_data)["small/loss"] != metrics["small/loss"]

    def test_every_caption_field_is_learned_from(self, tiny_data, tmp_path):
        """Two fields: the texts of the second one are drawn too, so the run differs from one on the first alone."""
        both = self.CONFIG.model_copy(update={"captions": ["captions", "descriptions"]})
        one = _run(self.CONFIG, tmp_path / "one", tiny_data)
        assert _run(both, tmp_path / "both", tiny_data)["small/loss"] != one["small/loss"]

    def test_dropout_without_cached_features_is_refused(self):
        section = self.CONFIG.model_dump(mode="json")
        section["teachers"][0]["dropout"] = 0.1
        with pytest.raises(ConfigError, match=r"^train_teacher\.teachers\.0: .*dropout is above 0 and lock is off"):
            check_section("train_teacher", section)

    def test_no_teachers_is_an_empty_stage(self, tiny_data, tmp_path):
        assert _run(TrainTeacher(), tmp_path, tiny_data) == {}


class TestFineTuned:
    @pytest.fixture(scope="class")
    def start(self, tmp_path_factory) -> str:
        torch.manual_seed(7)
        folder = str(tmp_path_factory.mktemp("start"))
        zoo.save(folder, zoo.create("tiny-resnet"), license="CC-BY-4.0", card={})
        return folder

    def _teacher(self, start, **changes) -> TrainTeacher:
        training = SHORT.model_copy(update={"steps": 2, "log_every": 2})
        return TrainTeacher(teachers=[Teacher(name="tuned", model=f"local-dir:{start}", training=training, **changes)])

    def test_it_starts_from_the_weights_inherits_their_license_and_keeps_its_share_of_them(
        self, start, tiny_data, tmp_path
    ):
        _run(self._teacher(start), tmp_path / "whole", tiny_data)
        _run(self._teacher(start, start_share=0.25), tmp_path / "mixed", tiny_data)
        whole, mixed = (zoo.load("trained:tuned", trained=str(tmp_path / name)) for name in ("whole", "mixed"))
        first = zoo.load(f"local-dir:{start}").model.state_dict()
        for name, value in mixed.model.state_dict().items():
            if value.is_floating_point():
                end = whole.model.state_dict()[name]
                torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * end, rtol=1e-5, atol=1e-6)
        # A few small steps from there: nearer to the start than fresh weights are.
        name = "text.token_embedding.weight"
        assert (whole.model.state_dict()[name] - first[name]).abs().mean() < 0.2 * first[name].abs().mean()
        assert whole.license == "CC-BY-4.0 AND CC0-1.0"
        assert start not in (tmp_path / "whole" / "tuned" / "model.json").read_text()
        assert mixed.card["start"]["share"] == 0.25

    def test_weights_of_the_whole_and_of_a_tower_are_too_many(self, start, tiny_data, tmp_path):
        config = self._teacher(start, image_weights="image.safetensors")
        with pytest.raises(ConfigError, match="names weights of the whole model and of a tower, want one"):
            _run(config, tmp_path, tiny_data, towers=str(tmp_path))


def test_it_learns_to_tell_colors(tiny_data, tmp_path):
    training = SHORT.model_copy(update={"steps": 40, "batch_size": 16, "log_every": 5})
    config = TrainTeacher(teachers=[Teacher(name="small", model="tiny-resnet", training=training)])
    _run(config, tmp_path, tiny_data)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert min(losses[-3:]) < losses[0] - 0.4


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Path:
    """Two 'pretrained' towers of random weights in the published layout: timm's image trunk, a small BERT."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    text = folder / "text"
    words = sorted({*WORDS, ","})
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(text)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    bert = BertModel(config)
    bert.config.save_pretrained(text)
    save_file({k: v.contiguous() for k, v in bert.state_dict().items()}, text / "model.safetensors")
    clip = zoo.create("locked-lite", text_folder=text)
    save_file(
        {k: v.contiguous() for k, v in clip.model.visual.trunk.state_dict().items()}, folder / "image.safetensors"
    )
    return folder


class TestLocked:
    TEACHER = Teacher(
        name="locked", model="locked-lite", image_weights="image.safetensors", text_weights="text", lock=True,
        training=SHORT.model_copy(update={"steps": 60, "batch_size": 16, "log_every": 10}),
    )  # fmt: skip
    CONFIG = TrainTeacher(teachers=[TEACHER], captions=["captions", "descriptions"])

    def test_trunks_stay_as_they_were_and_the_heads_learn(self, towers, tiny_data, tmp_path):
        metrics = _run(self.CONFIG, tmp_path, tiny_data, towers=str(towers))
        before = train_teacher._create(self.TEACHER, towers).model.state_dict()
        after = zoo.load("trained:locked", trained=str(tmp_path)).model.state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith(("visual.head.", "text.proj.", "logit_scale")) for name in changed)
        losses = [json.loads(line)["loss"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
        assert losses[-1] < losses[0]
        assert "locked/validation/i2t/r10" in metrics

    def test_it_owes_to_its_data_and_to_both_towers(self, towers, tiny_data, tmp_path):
        """The ledger beside the towers names one; the other one's license is unknown, and so is then the teacher's."""
        given = shutil.copytree(towers, tmp_path / "towers")
        ledger = [{"file": "text", "name": "words", "license": "CC-BY-4.0", "attribution": "by W"}]
        (given / "LICENSES.json").write_text(json.dumps(ledger))
        _run(self.CONFIG, tmp_path / "out", tiny_data, towers=str(given))
        clip = zoo.load("trained:locked", trained=str(tmp_path / "out"))
        found = [(a.kind, a.name, a.license, a.attribution) for a in attribution.of_card(clip.card)]
        assert found == [
            ("data", "pictures and captions", "CC0-1.0", ""),
            ("weights", "image.safetensors", "unknown", ""),
            ("weights", "words", "CC-BY-4.0", "by W"),
        ]
        assert clip.license == "CC-BY-4.0 AND CC0-1.0 AND unknown"

    def test_dropout_is_of_the_training_alone(self, towers, tiny_data, tmp_path):
        clip = train_teacher._create(self.TEACHER, towers)
        image, text = torch.ones(4000, 1280), torch.ones(4000, 48)
        seen: list[torch.Tensor] = []
        heads = LockedHeads(clip, 0.25)
        for head in (heads.image_head, heads.text_head):
            head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        heads.train()(image, text)
        for features in seen:
            assert set(features.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
            assert abs(float((features == 0).float().mean()) - 0.25) < 0.01
        heads.eval()(image, text)
        assert all(map(torch.equal, seen[2:], (image, text)))
        dropped = self.CONFIG.model_copy(update={"teachers": [self.TEACHER.model_copy(update={"dropout": 0.25})]})
        _run(dropped, tmp_path / "dropped", tiny_data, towers=str(towers))
        _run(self.CONFIG, tmp_path / "kept", tiny_data, towers=str(towers))
        weights = [
            zoo.load("trained:locked", trained=str(tmp_path / n)).model.state_dict() for n in ("dropped", "kept")
        ]
        name = next(name for name in weights[0] if name.startswith("visual.head."))
        assert not torch.equal(weights[0][name], weights[1][name])

    def test_cached_features_are_those_of_the_whole_model(self, towers, tiny_data):
        """Sorting, padding cuts and caching change nothing: heads on cached features are the whole model."""
        from mobileclip.data.images import decode, resize
        from mobileclip.data.shards import read_samples

        clip = train_teacher._create(self.TEACHER, towers)
        content = manifest.read(tiny_data)
        image, text, owners = train_teacher._trunk_features(clip, self.CONFIG, tiny_data, content)
        samples = list(read_samples(tiny_data, content, "train"))
        texts = [(i, t) for i, s in enumerate(samples) for f in self.CONFIG.captions for t in s.metadata[f]]
        assert owners.tolist() == [i for i, _ in texts]
        with torch.no_grad():
            image_features, text_features = LockedHeads(clip)(image, text)
        for row in (0, 9, len(samples) - 1):
            pixels = image_tensor(resize(decode(samples[row].image), clip.preprocess)[None], clip.preprocess)
            torch.testing.assert_close(image_features[row], clip.encode_image(pixels)[0], atol=1e-5, rtol=0)
        for row in (0, 40, len(texts) - 1):
            torch.testing.assert_close(text_features[row], clip.encode_text([texts[row][1]])[0], atol=1e-5, rtol=0)

    def test_pictures_without_a_caption_of_the_fields_are_left_out(self, towers, tiny_data):
        config = self.CONFIG.model_copy(update={"captions": ["descriptions"]})
        clip = train_teacher._create(self.TEACHER, towers)
        image, _, owners = train_teacher._trunk_features(clip, config, tiny_data, manifest.read(tiny_data))
        assert 0 < len(image) < 32
        assert sorted(set(owners.tolist())) == list(range(len(image)))
        nothing = self.CONFIG.model_copy(update={"captions": ["poems"]})
        with pytest.raises(DataError, match=r"^data: no sample with a 'poems' caption is left in '"):
            train_teacher._trunk_features(clip, nothing, tiny_data, manifest.read(tiny_data))

    def test_towers_of_an_object_store_leave_no_copy(self, towers, tiny_data, tmp_path, monkeypatch):
        s3.use(monkeypatch)
        place = s3.bucket("towers")
        for path in sorted(towers.rglob("*.*")):
            storage.write_bytes(f"{place}/{path.relative_to(towers).as_posix()}", path.read_bytes())
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        short = self.TEACHER.model_copy(update={"training": SHORT})
        config = self.CONFIG.model_copy(update={"teachers": [short]})
        _run(config, tmp_path / "far", tiny_data, towers=place)
        assert not list((tmp_path / "temporary").iterdir())
        _run(config, tmp_path / "near", tiny_data, towers=str(towers))
        assert _files(tmp_path / "far").keys() == _files(tmp_path / "near").keys()
        weights = "locked/open_clip_model.safetensors"
        assert (tmp_path / "far" / weights).read_bytes() == (tmp_path / "near" / weights).read_bytes()

    def test_no_training_picture_is_refused(self, towers, tiny_data, tmp_path):
        content = manifest.read(tiny_data).moved(tiny_data, str(tmp_path / "data"))
        manifest.write(str(tmp_path / "data"), content.model_copy(update={"shards": content.split("validation")}))
        with pytest.raises(DataError, match=r"^data: no sample with a 'captions, descriptions' caption is left in "):
            _run(self.CONFIG, tmp_path / "out", str(tmp_path / "data"), towers=str(towers))

    @pytest.mark.parametrize(
        ("changes", "given", "error", "match"),
        [
            ({}, False, ConfigError, r" names pretrained towers, but input 'towers' is empty\.$"),
            ({"image_weights": "gone.safetensors"}, True, DataError, r": no weights at '.*gone\.safetensors'\.$"),
            ({"text_weights": "gone"}, True, DataError, r": no Hugging Face text model in '.*gone'\.$"),
            ({"image_weights": "text/model.safetensors"}, True, DataError, r": 'model\.safetensors' does not fit: "),
            (PLAIN, True, ConfigError, r": lock is on, but 'tiny-mci' has no timm image tower"),
        ],
    )  # fmt: skip
    def test_wrong_towers(self, towers, tiny_data, tmp_path, changes, given, error, match):
        config = TrainTeacher(teachers=[self.TEACHER.model_copy(update=changes)])
        with pytest.raises(error, match=rf"^train_teacher: teacher 'locked'{match}"):
            _run(config, tmp_path / "out", tiny_data, towers=str(towers) if given else "")
        assert not (tmp_path / "out").exists()


class TestValidationWhileTraining:
    """Both ways of training: of the whole model, and of the heads behind frozen trunks on cached features."""

    # A constant rate: after n steps a run of any length has the same weights.
    TRAINING = SHORT.model_copy(
        update={
            "steps": 36, "log_every": 4, "batch_size": 16,
            "optimizer": Optimizer(lr=3e-3, warmup_steps=1, constant_steps=99),
        }
    )  # fmt: skip
    WHOLE = Teacher(name="small", model="tiny-resnet", training=TRAINING)
    LOCKED = TestLocked.TEACHER.model_copy(update={"training": TRAINING, "dropout": 0.3})  # draws random numbers

    def _train(self, teacher, out, data, towers, *, tracker=None, **training):
        teacher = teacher.model_copy(update={"training": teacher.training.model_copy(update=training)})
        config = TrainTeacher(teachers=[teacher], seed=3)
        return train_teacher.run(config, out=str(out), tracker=tracker or LogTracker(), data=data, towers=str(towers))

    def _weights(self, teacher, out):
        return (out / teacher.name / "open_clip_model.safetensors").read_bytes()

    def _curve(self, out):
        return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]

    @pytest.fixture
    def scored(self, tiny_data, tmp_path) -> str:
        """A validation split large enough that scores differ: one of the two training shards."""
        folder = str(tmp_path / "scored")
        content = manifest.read(tiny_data).moved(tiny_data, folder)
        first, second = content.split("train")
        shards = [first, second.model_copy(update={"split": "validation"})]
        manifest.write(folder, content.model_copy(update={"shards": shards}))
        return folder

    @pytest.fixture
    def unscored(self, scored, tmp_path) -> str:
        """The same pairs to train on, and no validation split."""
        folder = str(tmp_path / "unscored")
        content = manifest.read(scored).moved(scored, folder)
        manifest.write(folder, content.model_copy(update={"shards": content.split("train")}))
        return folder

    @pytest.mark.parametrize("teacher", [WHOLE, LOCKED], ids=lambda t: t.name)
    def test_the_curve_has_the_scores_and_the_weights_are_those_of_a_run_without(
        self, teacher, towers, scored, unscored, tmp_path
    ):
        metrics = self._train(teacher, tmp_path / "with", scored, towers)
        curve = self._curve(tmp_path / "with")
        assert [p["step"] for p in curve] == list(range(4, 37, 4))
        names = {"validation/i2t/r1", "validation/i2t/r10"}
        assert all(names <= p.keys() for p in curve)
        # Afterwards the whole model is scored: the same as what the cached features gave.
        assert {n: curve[-1][n] for n in names} == {n: metrics[f"{teacher.name}/{n}"] for n in names}
        self._train(teacher, tmp_path / "without", unscored, towers)
        plain = self._curve(tmp_path / "without")
        assert plain == [{k: v for k, v in p.items() if k not in names} for p in curve]
        assert self._weights(teacher, tmp_path / "with") == self._weights(teacher, tmp_path / "without")

    @pytest.mark.parametrize("teacher", [WHOLE, LOCKED], ids=lambda t: t.name)
    def test_the_best_weights_are_kept_also_after_a_kill(self, teacher, towers, scored, tmp_path):
        best = {"keep_weights": "best", "checkpoint_every": 10}
        metrics = self._train(teacher, tmp_path / "best", scored, towers, **best)
        scores = {p["step"]: p["validation/i2t/r1"] for p in self._curve(tmp_path / "best")}
        step = max(scores, key=lambda s: (scores[s], -s))
        assert 4 < step < 36
        self._train(teacher, tmp_path / "short", scored, towers, steps=step)
        assert self._weights(teacher, tmp_path / "best") == self._weights(teacher, tmp_path / "short")
        assert metrics[f"{teacher.name}/validation/i2t/r1"] == scores[step]

        class Killed(LogTracker):
            def log_metrics(self, metrics, *, step=0):  # noqa: ARG002 - the tracker's signature
                if step == 28:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self._train(teacher, tmp_path / "resumed", scored, towers, tracker=Killed(), **best)
        assert list((tmp_path / "resumed").glob("*/checkpoint/run-*/step-000000020/state.json"))
        assert self._train(teacher, tmp_path / "resumed", scored, towers, **best) == metrics
        whole, again = (_files(tmp_path / name) for name in ("best", "resumed"))
        assert {n: d for n, d in again.items() if n != "timings.json"} == {
            n: d for n, d in whole.items() if n != "timings.json"
        }

    @pytest.mark.parametrize("teacher", [WHOLE, LOCKED], ids=lambda t: t.name)
    def test_no_best_without_a_validation_split(self, teacher, towers, unscored, tmp_path):
        match = r"^training\.keep_weights: got 'best', but there is no validation split with captions to choose by\.$"
        with pytest.raises(ConfigError, match=match):
            self._train(teacher, tmp_path / "out", unscored, towers, keep_weights="best")
        assert not (tmp_path / "out").exists()


def test_a_run_that_began_with_other_towers_is_another(towers, tiny_data, tmp_path):
    """Killed, and started again with other weights in the tower's file: nothing of the first attempt is left."""
    other = tmp_path / "towers"
    shutil.copytree(towers, other)
    trunk = load_file(towers / "image.safetensors")
    save_file({k: v + 0.01 if v.is_floating_point() else v for k, v in trunk.items()}, other / "image.safetensors")
    training = SHORT.model_copy(update={"steps": 4, "log_every": 1, "checkpoint_every": 2})
    teacher = TestLocked.TEACHER.model_copy(update={"lock": False, "training": training})
    config = TrainTeacher(teachers=[teacher])

    class Killed(LogTracker):
        def log_metrics(self, metrics, *, step=0):  # noqa: ARG002 - the tracker's signature
            if step == 3:
                raise KeyboardInterrupt

    def run(out, folder, tracker=None):
        inputs = {"data": tiny_data, "towers": str(folder)}
        train_teacher.run(config, out=str(tmp_path / out), tracker=tracker or LogTracker(), **inputs)
        return (tmp_path / out / "locked" / "open_clip_model.safetensors").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        run("again", towers, Killed())
    assert run("again", other) == run("fresh", other)
