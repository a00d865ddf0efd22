"""Several processes: losses, gradients and running statistics are those of one process with the whole batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mobileclip.data.order import Steps
from mobileclip.errors import ConfigError
from mobileclip.training import world as world_module
from mobileclip.training.world import World
from tests.training.cases import CASES, captioner_step, step

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **options)


def _found(folder: Path, processes: int) -> list[dict[str, torch.Tensor]]:
    done = torchrun(processes, "-m", "tests.training.cases", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(processes)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Every case on two real processes; what each of them found."""
    return _found(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The same on four, some with a row and some with two."""
    return _found(tmp_path_factory.mktemp("four"), 4)


@pytest.mark.parametrize("processes", ["together", pytest.param("four", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_processes_compute_what_one_does(request, processes, name):
    expected = step(CASES[name], World())
    assert any(key.startswith("grad/") for key in expected)
    for found in request.getfixturevalue(processes):
        own = {key.partition("|")[2]: value for key, value in found.items() if key.startswith(f"{name}|")}
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(own[key], value, rtol=1e-12, atol=1e-14, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("chunks", [1, 2])
def test_two_processes_train_a_captioner_as_one_does(together, chunks):
    torch.set_num_threads(1)
    expected = captioner_step(World())
    for found in together:
        for key, value in expected.items():
            own = found[f"captioner {chunks}|{key}"]
            torch.testing.assert_close(own, value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_processes_train_a_captioner_without_its_contrastive_half(together):
    """Its scale then has no gradient: nobody waits for one."""
    torch.set_num_threads(1)
    expected = captioner_step(World(), contrastive_weight=0.0)
    assert "grad/logit_scale" not in expected
    for found in together:
        own = {key.partition("|")[2] for key in found if key.startswith("captions alone|")}
        assert own == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[f"captions alone|{key}"], value, rtol=1e-4, atol=1e-5)


def test_processes_drop_different_features_and_the_same_ones_again(together):
    """One seed for all processes would drop the same places of every row that shares a rank's position."""
    first, second = (found["dropped|once"] for found in together)
    assert first.shape == second.shape == (2, 2, 9, first.shape[-1])  # steps, rows of four, places, channels
    for masks, found in zip((first, second), together, strict=True):
        assert set(masks.unique().tolist()) == {0.0, 2.0}
        assert abs(float((masks == 0).float().mean()) - 0.5) < 0.01
        assert torch.equal(masks, found["dropped|again"])
    both = torch.cat([first.flatten(0, 1), second.flatten(0, 1)])
    for one in range(len(both)):
        for other in range(one):
            assert abs(float((both[one] == both[other]).float().mean()) - 0.5) < 0.05


def test_the_best_weights_are_read_before_they_are_removed(together):
    """The second process reads a second late: both have what the first point left, and none failed."""
    torch.manual_seed(0)
    start = torch.nn.Linear(2, 1).weight.detach()
    first, second = (found["best|weight"] for found in together)
    assert torch.equal(first, second)
    assert not torch.equal(first, start)


def test_processes_wait_for_hours_for_the_first_one(together):
    """Its scores and captions between two steps may take longer than the 10 minutes that are nccl's default."""
    for found in together:
        assert float(found["timeout|seconds"]) >= 2 * 3600


def test_the_cases_differ_and_the_batch_is_more_than_its_parts():
    """Loss by halves is not the loss of the whole: else the comparison above would prove nothing."""
    case = CASES["reinforced"]
    whole = step(case, World())
    assert float(whole["loss/loss"]) != pytest.approx(float(step(CASES["plain"], World())["loss/loss"]), rel=1e-2)
    from mobileclip.training.clip_objective import ClipObjective
    from tests.training import towers

    clip = towers.clip()
    objective = ClipObjective(clip, case.reinforcement, World(), total=3)
    half = {name: value[:3] for name, value in towers.batch(6).items()}
    part = objective.criterion(objective.encode(half), half)
    assert float(part["loss"]) != pytest.approx(float(whole["loss/loss"]), rel=1e-2)


class TestRows:
    @given(total=st.integers(0, 100), size=st.integers(1, 12))
    def test_are_dealt_out_evenly_and_in_order(self, total, size):
        parts = [World(rank, size).rows(total) for rank in range(size)]
        assert [row for part in parts for row in range(total)[part]] == list(range(total))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1

    @settings(max_examples=40, deadline=None)
    @given(
        samples=st.integers(1, 60), batch=st.integers(1, 30), seed=st.integers(0, 3),
        segments=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=6),
    )  # fmt: skip
    def test_restarts_on_other_numbers_of_processes_lose_and_repeat_nothing(self, samples, batch, seed, segments):
        """(steps, processes) from start to kill, and so on: every epoch holds every sample once."""
        places, first = [], 0
        for steps, processes in segments:
            last = first + steps
            shares = [
                Steps(np.array([0, samples]), batch, first, last, seed, World(rank, processes).rows(batch))
                for rank in range(processes)
            ]
            for parts in zip(*shares, strict=True):
                places += [place for part in parts for place in part]
            first = last
        for epoch in range(len(places) // samples + 1):
            rows = [position for e, position in places if e == epoch]
            assert len(rows) == len(set(rows))
            if (epoch + 1) * samples <= len(places):
                assert sorted(rows) == list(range(samples))
        whole = Steps(np.array([0, samples]), batch, 0, first, seed, slice(None))
        assert [place for step in whole for place in step] == places


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for value, match in (("cuda", "torch sees no CUDA device"), ("tpu", "got 'tpu', want cpu or cuda")):
        monkeypatch.setenv("MOBILECLIP_DEVICE", value)
        with pytest.raises(ConfigError, match=match):
            world_module._device(0)
