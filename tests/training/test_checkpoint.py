"""Checkpoints: everything comes back as it was, also memory layout; damage and other runs; what is kept."""

import pytest
import torch
from torch import nn

from mobileclip.config import Optimizer
from mobileclip.errors import IntegrityError
from mobileclip.training import checkpoint
from mobileclip.training.checkpoint import Snapshot
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


def _save(folder, model, optimizer, *, key="a", step=3, **options):
    state = Snapshot(step, 8 * step, HISTORY, {"0.bias": torch.ones(4)}, {"scale": 1024.0}, torch.get_rng_state()[None])
    checkpoint.save(str(folder), state, key=key, model=model, optimizer=optimizer, **options)


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_comes_back(tmp_path):
    model, optimizer = _trained()
    _save(tmp_path, model, optimizer)
    expected_draw = torch.rand(3)
    other, fresh = _trained(0)
    assert checkpoint.find(str(tmp_path), key="a") == 3
    found = checkpoint.load(str(tmp_path), 3, model=other, optimizer=fresh)
    assert (found.step, found.samples, found.history, found.scaler) == (3, 24, HISTORY, {"scale": 1024.0})
    assert torch.equal(found.mean["0.bias"], torch.ones(4))
    torch.set_rng_state(found.random[0])
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
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_none_and_another_runs(tmp_path):
    model, optimizer = _trained()
    assert checkpoint.find(str(tmp_path), key="a") == 0
    _save(tmp_path, model, optimizer)
    assert checkpoint.find(str(tmp_path), key="b") == 0


def test_older_ones_go_but_the_best(tmp_path):
    model, optimizer = _trained()
    checkpoint.save_best(str(tmp_path), 2, model.state_dict())
    checkpoint.save_best(str(tmp_path), 1, model.state_dict())
    for step in (1, 2, 3, 4):
        _save(tmp_path, model, optimizer, step=step, keep=2, best=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-000000002", "step-000000003", "step-000000004"]
    weights = checkpoint.load_best(str(tmp_path), 2)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    with pytest.raises(IntegrityError, match=r"^checkpoint '.*best-000000001/model\.safetensors' is damaged: "):
        checkpoint.load_best(str(tmp_path), 1)


def test_a_folder_without_its_last_file_is_no_checkpoint(tmp_path):
    """A kill between the files of a checkpoint leaves the one before."""
    model, optimizer = _trained()
    _save(tmp_path, model, optimizer, keep=2)
    _save(tmp_path, model, optimizer, step=6, keep=2)
    (tmp_path / "step-000000006" / checkpoint.STATE).unlink()
    assert checkpoint.find(str(tmp_path), key="a") == 3


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.MEAN, checkpoint.STATE])
@pytest.mark.parametrize("cut", [0, 4, -1])
def test_a_cut_file_is_refused_with_its_name_unless_an_older_one_is_whole(tmp_path, name, cut):
    model, optimizer = _trained()
    _save(tmp_path, model, optimizer, step=6)
    file = tmp_path / "step-000000006" / name
    file.write_bytes(file.read_bytes()[:cut] if name != checkpoint.STATE else file.read_bytes()[: cut - 2])
    with pytest.raises(IntegrityError, match=rf"^checkpoint '.*{name}' is damaged: "):
        checkpoint.find(str(tmp_path), key="a")
    _save(tmp_path / "older", model, optimizer, step=3)
    (tmp_path / "older" / "step-000000003").rename(tmp_path / "step-000000003")
    assert checkpoint.find(str(tmp_path), key="a") == 3


def test_remove_leaves_nothing(tmp_path):
    model, optimizer = _trained()
    (tmp_path / "run").mkdir()
    _save(tmp_path / "run" / "checkpoint", model, optimizer)
    checkpoint.save_best(str(tmp_path / "run" / "checkpoint"), 2, model.state_dict())
    checkpoint.remove(str(tmp_path / "run" / "checkpoint"))
    assert list(tmp_path.iterdir()) == []
    checkpoint.remove(str(tmp_path / "run" / "checkpoint"))


def test_what_a_run_went_back_from_does_not_outlive_what_it_saves_next(tmp_path):
    """The newest is damaged, the one before is whole: the next checkpoint replaces the damaged one, not itself."""
    model, optimizer = _trained()
    for step in (3, 6):
        _save(tmp_path, model, optimizer, step=step, keep=2)
    (tmp_path / "step-000000006" / checkpoint.MODEL).write_bytes(b"")
    assert checkpoint.find(str(tmp_path), key="a") == 3
    _save(tmp_path, model, optimizer, step=4, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000004"]


def test_runs_lie_beside_each_other(tmp_path):
    model, optimizer = _trained()
    first, second = (checkpoint.of_run(str(tmp_path), key) for key in ("a", "b"))
    _save(first, model, optimizer)
    assert (checkpoint.others(first), checkpoint.others(second)) == (False, True)
    _save(second, model, optimizer, key="b", step=2)
    checkpoint.remove(second)
    assert (checkpoint.find(first, key="a"), checkpoint.find(second, key="b")) == (3, 0)
