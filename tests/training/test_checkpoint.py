"""Checkpoints: everything comes back as it was, also memory layout; damage and other runs."""

import pytest
import torch
from torch import nn

from mobileclip.config import Optimizer
from mobileclip.errors import IntegrityError
from mobileclip.training import checkpoint
from mobileclip.training.optimizer import create_optimizer

HISTORY = [{"model": "net", "step": 3, "loss": 0.1234567890123}]


def _trained(steps: int = 3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = create_optimizer(model, Optimizer())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def _save(folder, model, optimizer, **changes):
    values = {"key": "a", "step": 3, "mean": {"0.bias": torch.ones(4)}, "history": HISTORY, **changes}
    checkpoint.save(str(folder), model=model, optimizer=optimizer, **values)


def test_everything_comes_back(tmp_path):
    model, optimizer = _trained()
    _save(tmp_path, model, optimizer)
    expected_draw = torch.rand(3)
    other, fresh = _trained(0)
    torch.manual_seed(5)
    step, mean, history = checkpoint.load(str(tmp_path), key="a", model=other, optimizer=fresh)
    assert (step, history) == (3, HISTORY)
    assert torch.equal(mean["0.bias"], torch.ones(4))
    assert torch.equal(torch.rand(3), expected_draw)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(fresh.state_dict()["state"][index][name], value)
    # The fused optimizer walks through memory: a state of another layout than its weight would be read crosswise.
    weight = other[0].weight
    assert (
        fresh.state[weight]["exp_avg"].stride()
        == weight.stride()
        == optimizer.state[model[0].weight]["exp_avg"].stride()
    )


def test_equal_states_give_equal_bytes(tmp_path):
    model, optimizer = _trained()
    state = torch.get_rng_state()
    _save(tmp_path / "a", model, optimizer)
    torch.set_rng_state(state)
    _save(tmp_path / "b", model, optimizer)
    assert (tmp_path / "a" / checkpoint.FILE).read_bytes() == (tmp_path / "b" / checkpoint.FILE).read_bytes()


def test_none_and_another_runs(tmp_path):
    model, optimizer = _trained()
    assert checkpoint.load(str(tmp_path), key="a", model=model, optimizer=optimizer) == (0, {}, [])
    _save(tmp_path, model, optimizer)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    assert checkpoint.load(str(tmp_path), key="b", model=model, optimizer=optimizer) == (0, {}, [])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_cut_file_is_refused_with_its_name(tmp_path, cut):
    model, optimizer = _trained()
    _save(tmp_path, model, optimizer)
    file = tmp_path / checkpoint.FILE
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(IntegrityError, match=r"^checkpoint '.*checkpoint\.safetensors' is damaged: "):
        checkpoint.load(str(tmp_path), key="a", model=model, optimizer=optimizer)
