"""The captioner's training on small pictures: it learns, resumes, inherits licenses, and refuses what it must."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobileclip import manifest
from mobileclip.config import FinetuneCaptioner, Optimizer, Training
from mobileclip.data.images import decode, resize
from mobileclip.data.loader import PairDataset, Recipe
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import read_samples
from mobileclip.entry import run_stage
from mobileclip.errors import ConfigError, DataError
from mobileclip.evaluation.caption_scores import cider
from mobileclip.models import generation, zoo
from mobileclip.stages import finetune_captioner
from mobileclip.tracking.protocol import LogTracker
from mobileclip.training.captioning import coca_objective
from mobileclip.training.frozen import freeze_trunk
from mobileclip.training.world import World, join
from tests.models import open_clip_captions
from tests.stages import shapes


def _training(steps: int, *, checkpoint_every: int = 0) -> Training:
    optimizer = Optimizer(lr=1.5e-3, warmup_steps=min(10, steps), weight_decay=0.05)
    return Training(
        steps=steps, batch_size=10, optimizer=optimizer, workers=0, log_every=steps, checkpoint_every=checkpoint_every
    )


CONFIG = FinetuneCaptioner(
    finetune_field="descriptions", pretrain=_training(40), finetune=_training(80), held_out_samples=20
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return shapes.make(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("captioner")
    return out, finetune_captioner.run(CONFIG, out=str(out), tracker=LogTracker(), data=data)


def test_it_learns_the_better_captions(trained):
    """Held-out captions beat the best single caption for all pictures: the captioner looks at them."""
    out, metrics = trained
    references = [row["references"] for row in json.loads((out / "samples.json").read_text())]
    constant = max(sum(cider([text] * 20, references)) / 20 for row in references for text in row)
    assert metrics["finetune/validation/cider"] > 1.5 * constant
    assert metrics["finetune/validation/caption_loss"] < 0.5 * metrics["pretrain/validation/caption_loss"]
    assert metrics["finetune/validation/bleu4"] > 50
    assert metrics["finetune/validation/degenerate"] == 0
    assert -1 <= metrics["finetune/validation/clip_score"] <= 1
    assert {"pretrain/loss", "pretrain/loss/caption", "finetune/loss/contrastive"} <= set(metrics)


def test_history_and_samples(trained, data):
    out, _ = trained
    points = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [(p["model"], p["step"], p["samples"]) for p in points] == [("pretrain", 40, 400), ("finetune", 80, 800)]
    samples = json.loads((out / "samples.json").read_text())
    assert len(samples) == 20
    assert samples[0]["finetune"]["greedy"].startswith("a ")
    assert len(samples[0]["finetune"]["drawn"]) == 2
    assert samples[0]["references"] != samples[0]["alt_text"]


def test_checkpoint_folder_loads_with_its_licenses(trained, data):
    out, _ = trained
    clip = zoo.load("trained", trained=str(out))
    assert clip.license == "CC0-1.0"
    assert clip.card["stage"] == "finetune_captioner"
    assert clip.card["dataset"] == manifest.read(data).digest()
    assert str(out.parent) not in (out / "model.json").read_text()


def test_greedy_captions_of_trained_weights_equal_open_clip(trained, data):
    clip = zoo.load("trained", trained=str(trained[0]))
    samples = list(read_samples(data, manifest.read(data), "validation"))[:8]
    images = image_tensor(torch.stack([resize(decode(s.image), clip.preprocess) for s in samples]), clip.preprocess)
    specials = generation.specials_of(clip)
    for low, high in ((1, 24), (5, 24), (14, 20), (1, 6)):
        theirs = open_clip_captions.greedy(clip.model, images, **vars(specials), low=low, high=high)
        sampling = generation.Sampling("greedy", min_tokens=low, max_tokens=high)
        draws = torch.zeros(8, 1, high, dtype=torch.float64)
        ours = generation.generate(clip.model, images, draws, sampling=sampling, specials=specials)
        assert torch.equal(ours[:, 0], theirs)


def test_interrupted_training_ends_with_the_same_weights(data, tmp_path, monkeypatch, caplog):
    short = FinetuneCaptioner(
        finetune_field="descriptions",
        pretrain=_training(4, checkpoint_every=2),
        finetune=_training(4, checkpoint_every=2),
        held_out_samples=2,
    )

    def weights(name: str) -> str:
        finetune_captioner.run(short, out=str(tmp_path / name), tracker=LogTracker(), data=data)
        return json.loads((tmp_path / name / "model.json").read_text())["sha256"]

    whole = weights("whole")
    train = finetune_captioner.train_captioner

    def stop(*args, **kwargs):
        """Interrupt the second training at its last point, after its checkpoint."""
        if kwargs["title"] == "finetune":
            kwargs["validate"] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        return train(*args, **kwargs)

    monkeypatch.setattr(finetune_captioner, "train_captioner", stop)
    with pytest.raises(KeyboardInterrupt):
        weights("cut")
    monkeypatch.undo()
    assert list(tmp_path.glob("cut/finetune/checkpoint/*/step-000000002/state.json"))
    assert not (tmp_path / "cut/model.json").exists()
    # What decides no result may change meanwhile, in both phases: the fine-tuning goes on from its second step.
    free = {"workers": 1, "checkpoint_every": 1, "keep_checkpoints": 3}
    changes = {name: getattr(short, name).model_copy(update=free) for name in ("pretrain", "finetune")}
    short = short.model_copy(update={**changes, "held_out_samples": 3})
    caplog.set_level("INFO", "mobileclip.training")
    assert weights("cut") == whole
    resumed = [r.getMessage().partition(" of ")[0] for r in caplog.records if "resumes at" in r.getMessage()]
    assert resumed == ["pretrain: resumes at step 2", "finetune: resumes at step 2"]


def test_what_decides_a_phase_names_it(data):
    """The fine-tuning is another one after another pre-training; the pre-training is the same before either."""
    clip, content = zoo.create("tiny-coca"), manifest.read(data)

    def keys(**changes):
        config = CONFIG.model_copy(update=changes)
        return [finetune_captioner._key(phase, clip, config, content) for phase in finetune_captioner._phases(config)]

    pretrain, finetune = keys()
    for changes in ({"pretrain": _training(41)}, {"pretrain_field": "descriptions"}):
        assert keys(**changes)[1] != finetune
    assert keys(finetune=_training(81)) == [pretrain, finetune]  # a phase's own `Training` is added by the loop's key
    assert keys(finetune_field="captions")[0] == pretrain
    for changes in ({"caption_weight": 1.0}, {"lock": True}, {"seed": 1}, {"dropout": 0.5}):
        assert all(new != old for new, old in zip(keys(**changes), (pretrain, finetune), strict=True))


def test_the_weights_are_saved_before_they_are_scored(data, tmp_path, monkeypatch):
    """A fault while captions are generated costs no training."""
    short = FinetuneCaptioner(
        finetune_field="descriptions", pretrain=_training(1), finetune=_training(1), held_out_samples=2
    )
    scored = iter(range(2))
    score = finetune_captioner._score

    def fault(*args):
        if next(scored):
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(finetune_captioner, "_score", fault)
    with pytest.raises(KeyboardInterrupt):
        finetune_captioner.run(short, out=str(tmp_path), tracker=LogTracker(), data=data)
    assert zoo.load("trained", trained=str(tmp_path)).card["stage"] == "finetune_captioner"


def test_captions_are_scored_on_the_device_of_the_process(data, monkeypatch):
    """No other device but torch's `meta` is everywhere: model and pictures meet there."""
    clip = zoo.create("tiny-coca")
    samples = list(read_samples(data, manifest.read(data), "validation"))[:2]

    def see(clip, images, *_, **__):
        assert images.device.type == next(clip.model.parameters()).device.type == "meta"
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune_captioner, "join", lambda: World(device=torch.device("meta")))
    monkeypatch.setattr(finetune_captioner, "write_captions", see)
    with pytest.raises(KeyboardInterrupt):
        finetune_captioner._score(clip, samples, CONFIG)


def _held(config, data):
    return finetune_captioner._held_out(config, data, manifest.read(data))


def test_given_weights_skip_the_pretraining_and_pass_on_their_license(trained, data, tmp_path):
    folder = str(tmp_path / "start")
    clip = zoo.load("trained", trained=str(trained[0]))
    zoo.save(folder, clip, license="apple-amlr", card={})
    config = FinetuneCaptioner(
        finetune_field="descriptions", model=f"local-dir:{folder}", finetune=_training(1), held_out_samples=2
    )
    out = tmp_path / "out"
    metrics = finetune_captioner.run(config, out=str(out), tracker=LogTracker(), data=data)
    assert not any(name.startswith("pretrain") for name in metrics)
    # Scored before the fine-tuning, too; here after one step of training what was written is still much the same.
    scores = {name.rpartition("/")[2] for name in metrics if name.startswith("finetune/validation/")}
    assert scores == {name.rpartition("/")[2] for name in metrics if name.startswith("start/validation/")}
    assert {"caption_loss", "cider", "bleu4", "clip_score", "mean"} <= scores
    shown = json.loads((out / "samples.json").read_text())
    wanted, _ = finetune_captioner._score(clip, _held(config, data), config)
    assert {name: metrics[f"start/validation/{name}"] for name in wanted} == pytest.approx(wanted)
    assert all({"start", "finetune"} <= set(row) for row in shown)
    page = (out / "report.html").read_text()
    assert "<th>before fine-tuning</th><th>after fine-tuning</th>" in page
    assert page.count("Written before fine-tuning, greedy") == 2
    card = json.loads((out / "model.json").read_text())
    assert card["license"] == "CC0-1.0 AND apple-amlr"
    assert card["model"] == "local-dir"
    assert card["fields"] == {"finetune": "descriptions"}


def test_without_a_validation_split(tmp_path):
    data = shapes.make(tmp_path / "data", sizes=(20,), validation=False)
    config = FinetuneCaptioner(finetune_field="descriptions", pretrain=_training(1), finetune=_training(1))
    out = tmp_path / "out"
    metrics = finetune_captioner.run(config, out=str(out), tracker=LogTracker(), data=data)
    assert not any("validation" in name for name in metrics)
    assert json.loads((out / "samples.json").read_text()) == []
    best = _training(1).model_copy(update={"keep_weights": "best"})
    match = r"^finetune_captioner\.finetune\.keep_weights: got 'best', but there is no validation split with 'descr"
    config = config.model_copy(update={"finetune": best})
    with pytest.raises(ConfigError, match=match):  # before the pre-training
        finetune_captioner.run(config, out=str(tmp_path / "no"), tracker=LogTracker(), data=data)
    assert not (tmp_path / "no").exists()


def test_the_best_weights_are_kept(data, tmp_path):
    """At a constant rate after n steps a run of any length has the same weights: those of the lowest held-out loss."""
    torch.manual_seed(0)
    zoo.save(str(tmp_path / "start"), zoo.create("tiny-coca"), license="MIT", card={})
    optimizer = Optimizer(lr=1e-2, warmup_steps=1, constant_steps=99)
    training = _training(1).model_copy(update={"log_every": 4, "optimizer": optimizer})

    def run(name, **changes):
        finetune = training.model_copy(update=changes)
        config = CONFIG.model_copy(update={"model": f"local-dir:{tmp_path / 'start'}", "finetune": finetune})
        metrics = finetune_captioner.run(config, out=str(tmp_path / name), tracker=LogTracker(), data=data)
        return metrics, (tmp_path / name / "open_clip_model.safetensors").read_bytes()

    metrics, best = run("best", steps=28, keep_weights="best")
    lines = (tmp_path / "best" / "history.jsonl").read_text().splitlines()
    losses = {p["step"]: p["validation/caption_loss"] for p in map(json.loads, lines)}
    step = min(losses, key=losses.__getitem__)
    assert 4 < step < 28
    assert metrics["finetune/validation/caption_loss"] == losses[step]
    assert run("short", steps=step)[1] == best


def test_wrong_inputs_are_refused(data, tmp_path):
    inputs = {"out": str(tmp_path / "x"), "tracker": LogTracker(), "data": data}
    with pytest.raises(ConfigError, match=r"^finetune_captioner\.model: got 'tiny-mci', want a CoCa"):
        finetune_captioner.run(CONFIG.model_copy(update={"model": "tiny-mci"}), **inputs)
    with pytest.raises(DataError, match="no sample with a 'haiku' caption is left"):
        finetune_captioner.run(CONFIG.model_copy(update={"pretrain_field": "haiku"}), **inputs)
    section = {**CONFIG.model_dump(), "caption_weight": 0.0, "contrastive_weight": 0.0}
    with pytest.raises(ConfigError, match="both 0, want one above 0"):
        run_stage("finetune_captioner", section, out=tmp_path / "x", data=data)
    for changes, match in (
        ({"dropout": 0.2}, "dropout is above 0 and lock is off"),
        ({"context_length": 3}, "is 3, want "),
    ):
        with pytest.raises(ConfigError, match=match):
            run_stage("finetune_captioner", {**CONFIG.model_dump(), **changes}, out=tmp_path / "x", data=data)


def test_a_longer_context_is_learned_and_saved(trained, tmp_path):
    """Captions of more than 60 tokens, by a captioner whose weights know 32 places."""
    long = shapes.make(tmp_path / "data", tail=" and nothing else is there to be seen" * 7)
    texts = next(read_samples(long, manifest.read(long), "train")).metadata["descriptions"]
    words: dict[int, float] = {}
    for length in (80, 0):
        config = FinetuneCaptioner(
            finetune_field="descriptions",
            model=f"local-dir:{trained[0]}",
            context_length=length,
            held_out_samples=2,
            finetune=_training(50 if length else 1),
        )
        out = tmp_path / str(length)
        metrics = finetune_captioner.run(config, out=str(out), tracker=LogTracker(), data=long)
        words[length] = metrics["finetune/validation/words/mean"]
        clip = zoo.load("trained", trained=str(out))
        assert clip.tokenizer(["x"]).shape == (1, length or 32)
        assert len(clip.model.text.positional_embedding) == (length or 32) + 1
    assert int((clip.tokenizer(texts) != 0).sum(dim=1).min()) == 32  # cut
    assert words[0] <= 30
    assert words[80] > 50


def test_off_trains_nothing(tmp_path):
    config = CONFIG.model_copy(update={"enabled": False})
    assert finetune_captioner.run(config, out=str(tmp_path / "x"), tracker=LogTracker(), data="nowhere") == {}


def test_the_report_shows_scores_and_captions(trained):
    out, metrics = trained
    page = (out / "report.html").read_text()
    assert page.count("data:image/webp") == 20
    assert f"{metrics['finetune/validation/cider']:.3f}" in page
    assert json.loads((out / "samples.json").read_text())[0]["finetune"]["greedy"] in page
    assert str(out) not in page


class TestFrozenTrunk:
    """A pretrained trunk that is not trained: seen through once, and the same afterwards."""

    CONFIG = FinetuneCaptioner(
        finetune_field="descriptions",
        model="lite-coca", image_weights="trunk.safetensors", lock=True, pretrain=_training(6), finetune=_training(6),
        held_out_samples=4,
    )  # fmt: skip

    @pytest.fixture(scope="class")
    def towers(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("towers")
        torch.manual_seed(7)
        save_file(zoo.create("lite-coca").model.visual.trunk.state_dict(), folder / "trunk.safetensors")
        return folder

    def test_learns_around_it(self, data, towers, tmp_path):
        out = tmp_path / "out"
        metrics = finetune_captioner.run(self.CONFIG, out=str(out), tracker=LogTracker(), data=data, towers=str(towers))
        trained = zoo.load("trained", trained=str(out)).model.visual
        before = load_file(towers / "trunk.safetensors")
        assert all(torch.equal(tensor, before[name]) for name, tensor in trained.trunk.state_dict().items())
        torch.manual_seed(self.CONFIG.seed)
        fresh = zoo.create("lite-coca").model.visual
        assert not torch.equal(trained.neck.weight, fresh.neck.weight)
        assert metrics["pretrain/loss"] > 0

    def test_other_weights_under_the_same_name_are_another_run(self, data, tmp_path, monkeypatch):
        """The file is exchanged between kill and restart: nothing of the first attempt is left."""
        folder, files = tmp_path / "towers", []
        folder.mkdir()
        for seed in (7, 8):
            torch.manual_seed(seed)
            files.append(zoo.create("lite-coca").model.visual.trunk.state_dict())
        config = self.CONFIG.model_copy(update={"pretrain": _training(4, checkpoint_every=2), "finetune": _training(1)})
        given = {"tracker": LogTracker(), "data": data, "towers": str(folder)}
        save_file(files[0], folder / "trunk.safetensors")

        def killed(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(zoo, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune_captioner.run(config, out=str(tmp_path / "again"), **given)
        monkeypatch.undo()
        assert list((tmp_path / "again").rglob("state.json"))
        save_file(files[1], folder / "trunk.safetensors")
        for name in ("again", "fresh"):
            finetune_captioner.run(config, out=str(tmp_path / name), **given)
        again, fresh = ((tmp_path / n / "open_clip_model.safetensors").read_bytes() for n in ("again", "fresh"))
        assert again == fresh

    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_what_it_saw_is_what_it_sees(self, data, processes, monkeypatch):
        """The loss on stored features is the loss on the pictures, however many processes computed them."""
        monkeypatch.setenv("MOBILECLIP_PROCESSES", processes)
        torch.manual_seed(0)
        clip, content = zoo.create("lite-coca"), manifest.read(data)
        dataset = PairDataset(data, content, Recipe(clip.preprocess, clip.tokenizer, views="whole"))
        frozen = freeze_trunk(clip, data, content)
        batch = next(frozen.source(dataset, total=6, own=slice(None), seed=3)(5, 6))
        pairs, by_row = dict(dataset.pairs()), {row: uid for uid, row in frozen.rows.items()}
        own = [by_row[(frozen.features == kept).all(dim=(1, 2)).nonzero()[0].item()] for kept in batch["features"]]
        assert len(set(own)) == 6
        for uid, ids in zip(own, batch["text"], strict=True):
            assert any(torch.equal(ids, clip.tokenizer([text])[0]) for text in pairs[uid])
        pixels = torch.stack([dataset[0, list(pairs).index(uid)]["image"] for uid in own])
        objective = coca_objective(clip, join(), total=6, caption_weight=2.0, contrastive_weight=1.0)
        seen, stored = (
            objective.criterion(objective.encode(b), b) for b in ({"image": pixels, "text": batch["text"]}, batch)
        )
        for name in seen:
            torch.testing.assert_close(stored[name], seen[name], rtol=1e-5, atol=1e-5)

    def test_dropout_is_of_the_training_alone_and_goes_on_after_a_kill(self, data, towers, tmp_path, monkeypatch):
        """The stream of the masks is in the checkpoint: a resumed run ends with the same weights."""
        inputs = {"tracker": LogTracker(), "data": data, "towers": str(towers)}
        config = self.CONFIG.model_copy(
            update={"dropout": 0.25, "pretrain": _training(4, checkpoint_every=2), "finetune": _training(1)}
        )

        def weights(name: str, **changes) -> str:
            finetune_captioner.run(config.model_copy(update=changes), out=str(tmp_path / name), **inputs)
            return json.loads((tmp_path / name / "model.json").read_text())["sha256"]

        whole = weights("whole")
        assert whole != weights("kept", dropout=0.0)
        train = finetune_captioner.train_captioner

        def stop(*args, **kwargs):
            kwargs["validate"] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
            return train(*args, **kwargs)

        monkeypatch.setattr(finetune_captioner, "train_captioner", stop)
        with pytest.raises(KeyboardInterrupt):
            weights("cut")
        monkeypatch.undo()
        torch.set_num_threads(1)
        assert list(tmp_path.glob("cut/pretrain/checkpoint/*/step-000000002/state.json"))
        torch.manual_seed(12345)  # as another process would stand elsewhere
        assert weights("cut") == whole

    def test_no_training_picture_is_refused(self, data, towers, tmp_path):
        content = manifest.read(data).moved(data, str(tmp_path / "data"))
        manifest.write(str(tmp_path / "data"), content.model_copy(update={"shards": content.split("validation")}))
        given = {"data": str(tmp_path / "data"), "towers": str(towers)}
        with pytest.raises(DataError, match=r"^data: no sample of split train in '.*data'\.$"):
            finetune_captioner.run(self.CONFIG, out=str(tmp_path / "out"), tracker=LogTracker(), **given)

    @pytest.mark.parametrize(
        ("changes", "given", "sentence"),
        [
            ({"model": "tiny-coca"}, True, r"\.image_weights: got 'trunk\.safetensors', but 'tiny-coca' has no"),
            ({"model": "tiny-coca", "image_weights": ""}, True, r"\.lock: got True, but 'tiny-coca' has no"),
            ({}, False, r": names pretrained trunk weights, but input 'towers' is empty\.$"),
            ({"image_weights": "gone.safetensors"}, True, r": no weights at '.*gone\.safetensors'\.$"),
        ],
    )  # fmt: skip
    def test_refusals(self, changes, given, sentence, data, towers, tmp_path):
        config = self.CONFIG.model_copy(update=changes)
        out = tmp_path / "out"
        inputs = {"towers": str(towers)} if given else {}
        with pytest.raises((ConfigError, DataError), match=f"^finetune_captioner{sentence}"):
            finetune_captioner.run(config, out=str(out), tracker=LogTracker(), data=data, **inputs)
        assert not out.exists()
