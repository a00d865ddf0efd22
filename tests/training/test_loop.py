"""The loop: a run that was killed goes on to the same last bit, the mean of the weights, limits, sentences."""

import io
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip.config import Optimizer, Training
from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.training import checkpoint
from mobileclip.training.checks import check_weights
from mobileclip.training.curves import write_timings
from mobileclip.training.loop import Result, train
from mobileclip.training.objective import Halves

OPTIMIZER = Optimizer(lr=0.02, lr_end=0.001, warmup_steps=3, weight_decay=0.1)
CONFIG = Training(
    steps=12, batch_size=8, optimizer=OPTIMIZER, ema_decay=0.7, workers=0, log_every=1, checkpoint_every=5
)


class Net(nn.Module):
    """All that a resume can get wrong: a channels-last convolution, buffers, dropout, a scale."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        x = self.drop(F.relu(self.norm(self.conv(images)))).mean(dim=(2, 3))
        return self.logit_scale.exp() * self.head(x)


def _model() -> Net:
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last)


def _loader(last_batches: list[int] | None = None):
    """Batches by step through torch's DataLoader, as the real source has them."""
    from torch.utils.data import DataLoader

    class Pairs(torch.utils.data.Dataset):
        def __getitem__(self, step):
            generator = torch.Generator().manual_seed(step)
            image = torch.randn(8, 3, 6, 6, generator=generator).contiguous(memory_format=torch.channels_last)
            return {"image": image, "target": torch.randint(4, (8,), generator=generator)}

    def source(first, last):
        if last_batches is not None:
            last_batches.append(first)
        generator = torch.Generator().manual_seed(0)
        return iter(DataLoader(Pairs(), sampler=range(first, last), batch_size=None, generator=generator))

    return source


def _run(model, folder, *, config=CONFIG, key="key", loss=None, source=None, **options):
    def plain(batch):
        return {"loss": F.cross_entropy(model(batch["image"]), batch["target"])}

    objective = Halves(encode=loss or plain, criterion=lambda features, _: features)
    return train(model, objective, source or _loader(), config, key=key, folder=str(folder), title="net", **options)


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _equal(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def _killed_after(step: int, model, folder, **kwargs):
    """Train until the loss of `step` is asked for, then stop as a killed process does: nothing is cleaned up."""
    calls = iter(range(1000))

    def loss(batch):
        if next(calls) == step:
            raise KeyboardInterrupt
        return {"loss": F.cross_entropy(model(batch["image"]), batch["target"])}

    with pytest.raises(KeyboardInterrupt):
        _run(model, folder, loss=loss, **kwargs)


@pytest.mark.parametrize("ema", [0.0, 0.7])
@pytest.mark.parametrize("killed", [1, 5, 6, 11])
def test_a_killed_run_goes_on_to_the_same_last_bit(tmp_path, killed, ema):
    config = CONFIG.model_copy(update={"ema_decay": ema})
    whole = _model()
    expected = _run(whole, tmp_path / "whole", config=config)
    _killed_after(killed, _model(), tmp_path / "broken", config=config)
    starts: list[int] = []
    torch.manual_seed(99)  # a new process has another random state
    again = _model()
    found = _run(again, tmp_path / "broken", config=config, source=_loader(starts))
    assert starts == [killed // 5 * 5]
    assert found.history == expected.history
    assert _equal(again, whole)
    assert _files(tmp_path / "broken") == _files(tmp_path / "whole")


def test_twice_killed(tmp_path):
    whole, again = _model(), _model()
    expected = _run(whole, tmp_path / "whole")
    _killed_after(7, _model(), tmp_path / "broken")
    _killed_after(4, _model(), tmp_path / "broken")  # the ninth step of all
    assert _run(again, tmp_path / "broken").history == expected.history
    assert _equal(again, whole)


def test_another_run_never_takes_the_checkpoint(tmp_path):
    _killed_after(7, _model(), tmp_path)
    starts: list[int] = []
    _run(_model(), tmp_path, key="other", source=_loader(starts))
    assert starts == [0]


def test_dropout_and_batch_norm_are_what_the_test_thinks(tmp_path):
    """The net above really draws random numbers and really changes buffers: else the test of resuming proves less."""
    model = _model()
    model.train()
    batch = next(_loader()(0, 1))
    before = model.norm.running_mean.clone()
    assert not torch.equal(model(batch["image"]), model(batch["image"]))
    assert not torch.equal(model.norm.running_mean, before)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_history_has_a_point_every_few_steps_and_at_the_end(tmp_path):
    config = CONFIG.model_copy(update={"log_every": 5})
    history = _run(_model(), tmp_path, config=config).history
    assert [point["step"] for point in history] == [5, 10, 12]
    assert [point["samples"] for point in history] == [40, 80, 96]
    assert {"model", "loss", "grad_norm", "lr", "logit_scale"} <= set(history[0])
    assert history[0]["model"] == "net"


def test_the_saved_weights_are_the_running_mean(tmp_path):
    """EMA by its definition over the weights of every step, with its ramp of (1 + t) / (10 + t)."""
    seen: list[dict[str, torch.Tensor]] = []
    model = _model()
    seen.append({k: v.clone() for k, v in model.state_dict().items()})

    def loss(batch):
        if len(seen) > 1 or done:
            seen.append({k: v.detach().clone() for k, v in model.named_parameters()})
        done.append(1)
        return {"loss": F.cross_entropy(model(batch["image"]), batch["target"])}

    done: list[int] = []
    config = CONFIG.model_copy(update={"checkpoint_every": 0, "ema_decay": 0.5})
    _run(model, tmp_path / "mean", config=config, loss=loss)
    plain = _model()
    _run(plain, tmp_path / "plain", config=config.model_copy(update={"ema_decay": 0.0}))
    weights = [step["head.weight"] for step in seen[1:]] + [plain.head.weight.detach()]  # after steps 1 to 12
    mean = seen[0]["head.weight"]
    for step, value in enumerate(weights):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
    torch.testing.assert_close(model.head.weight.detach(), mean, rtol=1e-6, atol=1e-7)
    assert int(model.norm.num_batches_tracked) == 12
    assert not (tmp_path / "mean").exists()


def test_validation_sees_the_mean_in_eval_mode_and_training_goes_on_unharmed(tmp_path):
    model, modes = _model(), []

    def validate():
        modes.append(model.training)
        return {"weight": float(model.head.weight.detach().sum())}

    found = _run(model, tmp_path / "validated", validate=validate)
    plain = _model()
    expected = _run(plain, tmp_path / "plain")
    assert _equal(model, plain)
    assert [p["loss"] for p in found.history] == [p["loss"] for p in expected.history]
    assert modes == [False] * 12
    assert not model.training
    assert found.history[-1]["validation/weight"] == float(model.head.weight.detach().sum())


def test_gradient_clipping_and_its_absence(tmp_path):
    def steep(model):
        return lambda batch: {"loss": 1000 * F.cross_entropy(model(batch["image"]), batch["target"])}

    weights = {}
    for clip in (0.0, 0.01):
        model = _model()
        optimizer = OPTIMIZER.model_copy(update={"grad_clip": clip, "eps": 1.0})
        config = CONFIG.model_copy(update={"optimizer": optimizer, "steps": 1, "ema_decay": 0.0})
        history = _run(model, tmp_path / str(clip), config=config, loss=steep(model)).history
        assert history[0]["grad_norm"] > 10  # the norm before clipping
        weights[clip] = model.head.weight.detach()
    start = _model().head.weight.detach() * (1 - 0.1 * 0.02 / 3)  # decay alone
    moved = {clip: float((w - start).norm()) for clip, w in weights.items()}
    assert moved[0.01] <= 0.02 / 3 * 0.01 * 1.01  # lr * clipped norm, where eps 1 rules the denominator
    assert moved[0.0] > 10 * moved[0.01]


def test_the_logit_scale_stays_within_clips_bounds(tmp_path):
    model = _model()
    config = CONFIG.model_copy(
        update={"optimizer": OPTIMIZER.model_copy(update={"lr": 5.0, "grad_clip": 0.0}), "ema_decay": 0.0}
    )
    history = _run(model, tmp_path, config=config, loss=lambda _: {"loss": -model.logit_scale}).history
    assert max(point["logit_scale"] for point in history) == pytest.approx(100.0, rel=1e-6)
    assert history[-1]["logit_scale"] == pytest.approx(100.0, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_a_sentence_and_no_update(tmp_path, value):
    model = _model()
    states = []

    def loss(batch):
        states.append({k: v.clone() for k, v in model.named_parameters()})
        factor = value if len(states) == 4 else 1.0
        return {"loss": factor * F.cross_entropy(model(batch["image"]), batch["target"])}

    with pytest.raises(MobileClipError, match=rf"^training: the loss is {value} at step 3; lower the learning rate\.$"):
        _run(model, tmp_path, loss=loss)
    assert all(torch.equal(v, dict(model.named_parameters())[k]) for k, v in states[-1].items())


def test_a_gradient_that_is_not_finite_stops_with_a_sentence_and_no_update(tmp_path):
    model = _model()
    before = {k: v.clone() for k, v in model.named_parameters()}

    def loss(batch):
        out = model(batch["image"])
        return {"loss": F.cross_entropy(out, batch["target"]) + 0 * torch.sqrt(0 * out.sum())}  # 0 * infinity

    with pytest.raises(
        MobileClipError,
        match=r"^training: the gradient norm is nan at step 0; the weights it starts",
    ):
        _run(model, tmp_path, loss=loss)
    assert all(torch.equal(v, dict(model.named_parameters())[k]) for k, v in before.items())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_last_step_may_not_break_the_weights(tmp_path, keep):
    """No loss comes after it: its weights are looked at themselves, and a score of them is no score."""
    model = _model()
    optimizer = CONFIG.optimizer.model_copy(update={"lr": 1e-3, "lr_end": 1e39, "warmup_steps": 3})
    config = CONFIG.model_copy(
        update={"optimizer": optimizer, "steps": 5, "log_every": 1, "keep_weights": keep, "checkpoint_every": 0}
    )
    with pytest.raises(MobileClipError, match=r"^training: '.*' is not finite after step 5; lower the learning"):
        _run(model, tmp_path, config=config, validate=lambda: {"score": 1.0})


def test_infinity_is_no_fault_of_a_mask():
    model = _model()
    model.register_buffer("mask", torch.full((2, 2), -math.inf))
    check_weights(model, step=1)
    model.register_buffer("mean", torch.full((2,), math.nan))
    with pytest.raises(MobileClipError, match=r"^training: 'mean' is not finite after step 1; lower"):
        check_weights(model, step=1)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    model = _model()
    kinds = []

    def loss(batch):
        out = model.head(model.conv(batch["image"]).mean(dim=(2, 3)))
        kinds.append(out.dtype)
        return {"loss": F.cross_entropy(out.float(), batch["target"])}

    config = CONFIG.model_copy(update={"precision": "bfloat16", "steps": 2})
    _run(model, tmp_path, config=config, loss=loss)
    assert kinds == [torch.bfloat16] * 2
    assert model.head.weight.dtype == torch.float32


SCRIPT = """
import sys, time
from tests.training.test_loop import CONFIG, _loader, _model, _run
from torch.nn import functional as F
model = _model()
def loss(batch):
    time.sleep(0.05)
    return {"loss": F.cross_entropy(model(batch["image"]), batch["target"])}
config = CONFIG.model_copy(update={"checkpoint_every": 1, "steps": 200})
print("ready", flush=True)
_run(model, sys.argv[1], config=config, loss=loss)
"""


def test_sigkill_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    process.stdout.readline()
    folder = checkpoint.of_run(str(tmp_path / "run"), "key")
    while not checkpoint.find(folder, key="key"):
        time.sleep(0.02)
    time.sleep(0.12)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    config = CONFIG.model_copy(update={"checkpoint_every": 0, "steps": 200})
    model = _model()
    from mobileclip.training.optimizer import create_optimizer

    step = checkpoint.find(folder, key="key")
    found = checkpoint.load(folder, step, model=model, optimizer=create_optimizer(model, config.optimizer))
    assert 0 < step == found.step == len(found.history) == found.history[-1]["step"]
    assert found.samples == 8 * step
    assert set(found.mean) == set(model.state_dict())
    # Going on from there and never having been killed is the same.
    whole, again = _model(), _model()
    short = CONFIG.model_copy(update={"checkpoint_every": 1, "steps": 200})
    expected = _run(whole, tmp_path / "whole", config=short)
    assert _run(again, tmp_path / "run", config=short).history == expected.history
    assert _equal(again, whole)


def test_the_best_weights_are_kept_through_a_kill(tmp_path):
    """Scores 3, 1, 4, 4, 1, ... by step: the first of the best ones wins, and a lower loss is better."""
    scores = dict(enumerate([3, 1, 4, 4, 1, 3, 2, 2, 2, 2, 2, 2], start=1))
    config = CONFIG.model_copy(update={"keep_weights": "best", "ema_decay": 0.0, "checkpoint_every": 5})

    def scorer(name, sign):
        return lambda: {name: float(sign * scores[next(turns)])}

    seen: dict[int, torch.Tensor] = {}

    def watching(model):
        turn = iter(range(100))

        def loss(batch):
            seen[next(turn)] = model.head.weight.detach().clone()
            return {"loss": F.cross_entropy(model(batch["image"]), batch["target"])}

        return loss

    for name, sign in (("r1", 1), ("caption_loss", -1)):
        turns = iter(range(1, 13))
        model = _model()
        _run(model, tmp_path / name, config=config, validate=scorer(name, sign), loss=watching(model))
        assert torch.equal(model.head.weight, seen[3])  # what step 3 begins with is what the third step left
    turns = iter(range(1, 13))
    _killed_after(7, _model(), tmp_path / "killed", config=config, validate=scorer("r1", 1))
    turns = iter(range(6, 13))
    again = _model()
    _run(again, tmp_path / "killed", config=config, validate=scorer("r1", 1))
    assert torch.equal(again.head.weight, seen[3])


def test_the_best_running_mean_is_the_same_after_a_kill(tmp_path):
    """The score is one of the running mean, and the kept weights are those that were scored highest."""
    config = CONFIG.model_copy(update={"keep_weights": "best"})

    def run(folder, *, kill=-1):
        model, means = _model(), {}

        def validate():
            score = -abs(float(model.head.weight.detach().sum()) - 0.049)
            means[score] = model.head.weight.detach().clone()
            return {"r1": score}

        if kill >= 0:
            _killed_after(kill, model, folder, config=config, validate=validate)
            return None
        return model, _run(model, folder, config=config, validate=validate), means

    whole, expected, means = run(tmp_path / "whole")
    assert 5 < expected.saved["step"] < 12
    assert torch.equal(whole.head.weight, means[expected.saved["validation/r1"]])
    for kill in (6, 11):
        run(tmp_path / str(kill), kill=kill)
        again, found, _ = run(tmp_path / str(kill))
        assert (found.history, found.saved) == (expected.history, expected.saved)
        assert _equal(again, whole)


def test_off_a_terminal_every_point_is_a_line_and_a_resume_names_its_step(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    config = CONFIG.model_copy(update={"checkpoint_every": 2, "log_every": 4})
    with caplog.at_level(logging.INFO, logger="mobileclip.training.loop"):
        _killed_after(7, _model(), tmp_path, config=config)
        _run(_model(), tmp_path, config=config)
    lines = [record.getMessage() for record in caplog.records]
    told = [re.sub(r"loss [\d.]+, [\d.]+ samples a second, [\d:]+ left", "FIGURES", line) for line in lines]
    steps = CONFIG.steps
    assert told == [
        f"net: step 4 of {steps}, FIGURES",
        f"net: resumes at step 6 of {steps}",
        *[f"net: step {step} of {steps}, FIGURES" for step in (8, steps)],
    ]


def test_the_last_few_checkpoints_are_kept(tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_every": 2, "keep_checkpoints": 3})
    _run(_model(), tmp_path, config=config)
    assert sorted(p.name for p in tmp_path.glob("run-*/*")) == ["step-000000006", "step-000000008", "step-000000010"]


def test_another_run_in_the_same_place_replaces_nothing_and_says_so(tmp_path, caplog):
    """A changed key, then back: each goes on where it was."""
    config = CONFIG.model_copy(update={"checkpoint_every": 1, "keep_checkpoints": 1})
    _killed_after(9, _model(), tmp_path, config=config)
    _killed_after(4, _model(), tmp_path, config=config, key="other")
    assert "starts at step 0, as the unfinished run in" in caplog.text
    caplog.clear()
    for key, step in (("other", 4), ("key", 9)):
        starts: list[int] = []
        _killed_after(2, _model(), tmp_path, config=config, key=key, source=_loader(starts))
        assert starts == [step]
    assert caplog.text == ""


def test_resume_never_starts_anew(tmp_path):
    _killed_after(7, _model(), tmp_path)
    config = CONFIG.model_copy(update={"resume": "never", "checkpoint_every": 1, "keep_checkpoints": 1})
    starts: list[int] = []
    _killed_after(4, _model(), tmp_path, config=config, source=_loader(starts))
    assert starts == [0]
    _run(_model(), tmp_path, source=_loader(starts))
    assert starts == [0, 4]  # the new start's checkpoint, not the one of the run before


def test_float16_scales_gradients_and_resumes_its_scale(tmp_path):
    """At 2 ** 16 the first gradients overflow: steps are skipped and the scale halves until they do not."""
    config = CONFIG.model_copy(update={"precision": "float16", "ema_decay": 0.0})

    def loss(model):
        def of(batch):
            x = model.norm(model.conv(batch["image"]).float()).mean(dim=(2, 3))
            return {"loss": F.cross_entropy(model.logit_scale.exp() * model.head(x).float() * 50, batch["target"])}

        return of

    whole = _model()
    expected = _run(whole, tmp_path / "whole", config=config, loss=loss(whole))
    assert all(math.isfinite(point["loss"]) for point in expected.history)
    broken = _model()
    plain, calls = loss(broken), iter(range(100))

    def until(batch):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return plain(batch)

    with pytest.raises(KeyboardInterrupt):
        _run(broken, tmp_path / "broken", config=config, loss=until)
    (state,) = (tmp_path / "broken").glob("run-*/step-000000005/state.json")
    saved = json.loads(state.read_text())
    assert saved["scaler"]["scale"] < 2**16
    again = _model()
    found = _run(again, tmp_path / "broken", config=config, loss=loss(again))
    assert found.history == expected.history
    assert _equal(again, whole)


def test_a_batch_of_all_samples_counts_those_there_are(tmp_path):
    """Eight rows a step are asked for, the data have five: the curve and the checkpoints count five."""
    found = _run(_model(), tmp_path, total=5)
    assert [point["samples"] for point in found.history] == [5 * step for step in range(1, 13)]
    assert found.samples == 60
    config = CONFIG.model_copy(update={"accumulate": 6})
    match = r"^training\.batch_size: got 8 of 5 samples, want at least 6: one sample for each of 1 processes "
    with pytest.raises(ConfigError, match=match):
        _run(_model(), tmp_path, config=config, total=5)


def test_the_speed_of_a_resumed_run_is_that_of_what_it_did_itself(tmp_path):
    _killed_after(7, _model(), tmp_path / "run")
    found = _run(_model(), tmp_path / "run")
    assert found.samples == (12 - 5) * 8
    assert found.history[-1]["samples"] == 12 * 8
    write_timings(str(tmp_path), {"net": Result(found.history, samples=56, seconds=7.0)})
    assert json.loads((tmp_path / "timings.json").read_text())["net"]["samples_per_second"] == 8.0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"accumulate": 9}, r"^training\.batch_size: got 8, want at least 9: one sample for each of 1 processes "),
        ({"keep_weights": "best"}, r"^training\.keep_weights: got 'best', but there is no validation split"),
    ],
)
def test_what_cannot_be_is_said_before_training(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        _run(_model(), tmp_path, config=CONFIG.model_copy(update=changes))


def test_points_are_reported_as_they_come_and_again_after_a_kill(tmp_path):
    seen: list[dict[str, float]] = []

    def run(loss=None):
        model = _model()

        def plain(batch):
            return {"loss": F.cross_entropy(model(batch["image"]), batch["target"])}

        objective = Halves(encode=plain if loss is None else loss(plain), criterion=lambda features, _: features)
        return train(
            model, objective, _loader(), CONFIG, key="key", folder=str(tmp_path), title="net", report=seen.append
        )

    def stopping(plain):
        def loss(batch):
            if len(seen) == 7:
                raise KeyboardInterrupt
            return plain(batch)

        return loss

    with pytest.raises(KeyboardInterrupt):
        run(stopping)
    assert [point["step"] for point in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert all(point["samples_per_second"] > 0 and 0 <= point["wait_share"] <= 1 for point in seen)
    seen.clear()
    history = run().history
    assert [point["step"] for point in seen] == list(range(1, 13))
    assert ["wait_share" in point for point in seen] == [False] * 5 + [True] * 7
    assert [point["loss"] for point in seen] == [point["loss"] for point in history]
