"""train_clip: the default is a plain loop to the last bit; checkpointed, compiled, sigmoid and other students."""

import copy
import json
import math

import pytest
import torch

from mobileclip import manifest
from mobileclip.config import Optimizer, Training
from mobileclip.data.loader import PairDataset, Recipe, batches
from mobileclip.data.preprocess import image_tensor
from mobileclip.models import zoo
from mobileclip.training.backward import backward
from mobileclip.training.clip_objective import ClipObjective, Reinforcement, TeacherAffinity
from mobileclip.training.contrastive import (
    batch_source,
    set_grad_checkpointing,
    train_clip,
)
from mobileclip.training.losses import reinforced_loss
from mobileclip.training.replica import Replicas
from mobileclip.training.world import World
from tests.training import towers
from tests.training.cases import CASES

TRAINING = Training(
    steps=3, batch_size=8, workers=0, log_every=1, checkpoint_every=0,
    optimizer=Optimizer(lr=3e-3, warmup_steps=1, grad_clip=0.5),
)  # fmt: skip
REINFORCED = Reinforcement(teachers=(TeacherAffinity("first", 42.0),), distill_weight=0.7)


@pytest.fixture(scope="module")
def content(tiny_reinforced):
    torch.set_num_threads(1)
    return manifest.read(tiny_reinforced)


def _student():
    torch.manual_seed(5)
    return zoo.create("tiny-mci")


def _dataset(clip, folder, content, **options):
    recipe = Recipe(clip.preprocess, clip.tokenizer, synthetic=("coca",), teachers=("first",), seed=5, **options)
    return PairDataset(folder, content, recipe)


def _train(clip, dataset, folder, training=TRAINING, reinforcement=REINFORCED):
    return train_clip(
        clip, dataset, training, reinforcement=reinforcement, seed=5, key={}, folder=str(folder), title="student"
    )


def _same(model, other) -> bool:
    states = model.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_the_default_is_this_plain_loop_to_the_last_bit(tiny_reinforced, content, tmp_path):
    """Processes, parts, precision and all other options must cost the plain case not a single bit."""
    clip = _student()
    result = _train(clip, _dataset(clip, tiny_reinforced, content), tmp_path)
    own = _student()
    model = own.model.to(memory_format=torch.channels_last).train()
    free = [p for n, p in model.named_parameters() if p.ndim < 2 or "logit_scale" in n]
    decay = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "logit_scale" in n)]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.2}, {"params": free, "weight_decay": 0.0}],
        lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=True,
    )  # fmt: skip
    feed = batches(_dataset(own, tiny_reinforced, content), batch_size=8, first_step=0, last_step=3, seed=5, workers=0)
    for step, batch in enumerate(feed):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 if step == 0 else 1e-6 + (3e-3 - 1e-6) * (1 + math.cos(math.pi * (step - 1) / 2)) / 2
        pixels = image_tensor(batch["image"], own.preprocess).contiguous(memory_format=torch.channels_last)
        image = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(torch.cat([batch["text"], batch["synthetic_text"]]), normalize=True).chunk(2)
        losses = reinforced_loss(
            image, texts, model.logit_scale.exp(), distill_weight=0.7,
            teacher_image_features=[batch["teacher_image.first"]],
            teacher_texts=[[batch["teacher_text.first"]], [batch["teacher_synthetic.first"]]],
            teacher_logit_scales=[42.0],
        )  # fmt: skip
        optimizer.zero_grad()
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        point = result.history[step]
        assert (point["loss"], point["loss/distill"]) == (float(losses["loss"]), float(losses["distill"]))
        assert point["grad_norm"] == float(norm)
        assert point["logit_scale"] == float(model.logit_scale.exp())
    assert _same(clip.model, model)


def test_checkpointed_activations_change_neither_gradients_nor_statistics(tiny_reinforced, content):
    clip = _student()
    other = copy.copy(clip)
    other.model = copy.deepcopy(clip.model)
    set_grad_checkpointing(other.model)
    batch = next(
        batches(_dataset(clip, tiny_reinforced, content), batch_size=8, first_step=0, last_step=1, seed=5, workers=0)
    )
    for one in (clip, other):
        one.model.train()
        objective = ClipObjective(one, REINFORCED, World(), total=TRAINING.batch_size)
        backward(Replicas(one.model, objective, World()), batch, autocast=lambda: torch.autocast("cpu", enabled=False),
            recompute=one is other,
        )  # fmt: skip
    for (name, p), (_, q) in zip(clip.model.named_parameters(), other.model.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    for (name, p), (_, q) in zip(clip.model.named_buffers(), other.model.named_buffers(), strict=True):
        assert torch.equal(p, q), name


def test_a_sigmoid_student_is_saved_with_its_bias(tiny_reinforced, content, tmp_path):
    clip = _student()
    sigmoid = Reinforcement(
        teachers=(TeacherAffinity("first", 20.0),), distill_weight=0.5, affinity="sigmoid", feature_weight=0.1
    )
    result = _train(clip, _dataset(clip, tiny_reinforced, content), tmp_path, reinforcement=sigmoid)
    assert result.history[0]["logit_scale"] == pytest.approx(10.0, rel=0.05)
    assert {"loss/clip", "loss/distill", "loss/feature", "teacher_agreement"} <= set(result.history[0])
    zoo.save(str(tmp_path / "saved"), clip, license="MIT", card={})
    loaded = zoo.load(f"local-dir:{tmp_path}/saved")
    assert -10.1 < float(loaded.model.logit_bias) < -9.9
    assert _same(loaded.model, clip.model)  # the maps to the teachers' widths are gone
    config = json.loads((tmp_path / "saved" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["init_logit_bias"] == -10.0


def test_every_other_option_at_once_learns(tiny_reinforced, content, tmp_path):
    """Half precision, parts, running mean, mixed captions, choices in turn, extra augmentation, cross-entropy."""
    clip = _student()
    training = TRAINING.model_copy(
        update={
            "steps": 30, "log_every": 10, "accumulate": 2, "precision": "bfloat16", "ema_decay": 0.5,
            "grad_checkpointing": True, "optimizer": TRAINING.optimizer.model_copy(update={"lr": 1e-3}),
        }
    )  # fmt: skip
    dataset = _dataset(clip, tiny_reinforced, content, mix=0.5, sequential=True, extra_augment=(1, 5))
    reinforcement = Reinforcement(
        teachers=(TeacherAffinity("first", 42.0),), distill_weight=1.0, divergence="cross_entropy"
    )
    history = _train(clip, dataset, tmp_path, training, reinforcement).history
    assert [point["step"] for point in history] == [10, 20, 30]
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(value.dtype == torch.float32 for value in clip.model.parameters())


@pytest.mark.parametrize("batch_size", [32, 33])
def test_a_batch_larger_than_the_data_is_said(tiny_reinforced, content, caplog, batch_size):
    dataset = _dataset(_student(), tiny_reinforced, content)
    batch_source(dataset, TRAINING.model_copy(update={"batch_size": batch_size}), 5, World())
    said = "training.batch_size: got 33, the data have 32 samples: a batch holds some of them several times."
    assert [record.getMessage() for record in caplog.records] == [said] * (batch_size == 33)


@pytest.mark.slow
def test_compiled_towers_compute_the_same():
    case, batch = CASES["reinforced"], towers.batch(6)
    found = []
    for compiled in (False, True):
        clip = towers.clip(batch_norm=False)
        objective = ClipObjective(clip, case.reinforcement, World(), total=6, compiled=compiled)
        losses, _ = backward(
            Replicas(clip.model, objective, World()), batch, autocast=lambda: torch.autocast("cpu", enabled=False)
        )
        found.append((float(losses["loss"]), clip.model.conv.weight.grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-7)
