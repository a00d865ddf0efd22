"""A batch in parts with cached features: loss and gradients of the whole batch, draws and statistics once."""

import pytest
import torch

from mobileclip.training.backward import backward
from mobileclip.training.clip_objective import ClipObjective, Reinforcement
from mobileclip.training.objective import Halves
from mobileclip.training.replica import Replicas
from mobileclip.training.world import World
from tests.training import towers
from tests.training.cases import CASES, Case, step

REINFORCED = CASES["reinforced"].reinforcement


def _off():
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("chunks", [2, 3, 7])
@pytest.mark.parametrize("name", ["reinforced", "sigmoid", "features", "plain"])
def test_parts_give_the_whole_batchs_loss_and_gradients(name, chunks):
    case = CASES[name]
    found, expected = (
        step(Case(case.reinforcement, rows=7, chunks=n, batch_norm=False, synthetic=case.synthetic), World())
        for n in (chunks, 1)
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-13, msg=lambda m, key=key: f"{key}: {m}")


def test_gradients_of_parts_alone_are_others():
    """What usual accumulation would give: the mean of the halves' gradients, which know half the negatives."""
    whole = step(Case(REINFORCED, rows=6, chunks=2, batch_norm=False), World())
    clip = towers.clip(batch_norm=False)
    objective = ClipObjective(clip, REINFORCED, World(), total=3)
    for rows in (slice(0, 3), slice(3, 6)):
        part = {name: value[rows] for name, value in towers.batch(6).items()}
        (objective.criterion(objective.encode(part), part)["loss"] / 2).backward()
    assert not torch.allclose(clip.model.conv.weight.grad, whole["grad/conv.weight"], rtol=0.05)


def test_dropout_draws_once_per_part():
    """Both passes see the same masks, and the generator ends where one pass leaves it."""
    clip = towers.clip(batch_norm=False, dropout=0.4)
    objective = ClipObjective(clip, REINFORCED, World(), total=6)
    batch = towers.batch(6)
    torch.manual_seed(3)
    losses, _ = backward(Replicas(clip.model, objective, World()), batch, chunks=2, autocast=_off)
    after, gradient = torch.rand(1), clip.model.conv.weight.grad.clone()
    torch.manual_seed(3)
    halves = [objective.encode({k: v[rows] for k, v in batch.items()}) for rows in (slice(0, 3), slice(3, 6))]
    joined = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
    assert torch.equal(torch.rand(1), after)
    expected = objective.criterion(joined, batch)["loss"]
    clip.model.zero_grad()
    expected.backward()
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(gradient, clip.model.conv.weight.grad, rtol=1e-10, atol=1e-14)


def test_running_statistics_move_once_per_part():
    clip, other = towers.clip(), towers.clip()
    batch = towers.batch(6)
    objective = ClipObjective(clip, REINFORCED, World(), total=6)
    backward(Replicas(clip.model, objective, World()), batch, chunks=2, autocast=_off)
    for rows in (slice(0, 3), slice(3, 6)):
        other.model.encode_image(batch["image"][rows].float() / 255, normalize=True)
    assert int(clip.model.norm.num_batches_tracked) == 2
    torch.testing.assert_close(clip.model.norm.running_mean, other.model.norm.running_mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(clip.model.norm.running_var, other.model.norm.running_var, rtol=1e-6, atol=1e-9)


def test_activations_of_one_part_at_a_time_are_kept():
    """The point of it: no backward pass reaches over more rows than one part has."""
    rows = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # noqa: ARG004 - autograd calls it so
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):  # noqa: ARG004
            rows.append(len(gradient))
            return gradient

    clip = towers.clip(batch_norm=False)
    plain = ClipObjective(clip, Reinforcement(), World(), total=8)

    def encode(batch):
        return {name: Counted.apply(value) for name, value in plain.encode(batch).items()}

    counted = Halves(encode, plain.criterion)
    backward(Replicas(clip.model, counted, World()), towers.batch(8, synthetic=False), chunks=4, autocast=_off)
    assert rows == [2] * 8


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_criterion_computes_in_float32_under_autocast(chunks):
    clip = towers.clip(batch_norm=False)
    clip.model.float()
    kinds = []

    def encode(batch):
        x = clip.model.image(torch.ones(len(batch["text"]), 8))
        kinds.append(x.dtype)
        return {"x": x}

    def criterion(features, _):
        kinds.append((features["x"] @ features["x"].T).dtype)
        return {"loss": features["x"].square().sum()}

    batch = towers.batch(4, synthetic=False)
    autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    backward(Replicas(clip.model, Halves(encode, criterion), World()), batch, chunks=chunks, autocast=autocast)
    half = [torch.bfloat16] * chunks
    assert kinds == [*half, torch.float32, *(half if chunks > 1 else [])]
