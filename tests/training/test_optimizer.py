"""Parameter groups, one AdamW step by hand, and the schedule in closed form."""

import math

import pytest
import torch
from torch import nn

from mobileclip.config import Optimizer
from mobileclip.models import zoo
from mobileclip.training.optimizer import create_optimizer, learning_rate

CONFIG = Optimizer(lr=0.01, lr_end=0.001, warmup_steps=10, weight_decay=0.2, beta1=0.9, beta2=0.95, eps=1e-8)


def _names(model, optimizer):
    place = {id(p): name for name, p in model.named_parameters()}
    return {g["weight_decay"]: {place[id(p)] for p in g["params"]} for g in optimizer.param_groups}


def test_norms_biases_and_the_scale_do_not_decay():
    model = zoo.create("tiny-mci").model
    groups = _names(model, create_optimizer(model, CONFIG))
    assert set(groups) == {0.2, 0.0}
    kinds = dict(model.named_modules())
    for name, _ in model.named_parameters():
        owner = kinds[name.rpartition(".")[0]]
        free = name.endswith("bias") or name == "logit_scale" or isinstance(owner, nn.LayerNorm | nn.BatchNorm2d)
        assert name in groups[0.0 if free else 0.2], name
    assert groups[0.0] | groups[0.2] == {name for name, _ in model.named_parameters()}


def test_frozen_parameters_are_left_out_and_a_group_may_be_empty():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.requires_grad = False
    assert _names(model, create_optimizer(model, CONFIG)) == {0.2: {"1.weight"}}


def test_steps_are_adamw_as_published():
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, on one number that decays and one that does not."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([[0.5]], dtype=torch.float64))
    model.bias = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = create_optimizer(model, CONFIG)
    values, m, v = (
        {"weight": 0.5, "bias": 0.5},
        dict.fromkeys(("weight", "bias"), 0.0),
        dict.fromkeys(("weight", "bias"), 0.0),
    )
    for step in range(1, 6):
        optimizer.zero_grad()
        (3 * model.weight.sum() ** 2 + 3 * model.bias.sum() ** 2).backward()
        optimizer.step()
        for name, decay in (("weight", 0.2), ("bias", 0.0)):
            gradient = 6 * values[name]
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.95 * v[name] + 0.05 * gradient**2
            update = (m[name] / (1 - 0.9**step)) / (math.sqrt(v[name] / (1 - 0.95**step)) + 1e-8)
            values[name] -= 0.01 * (update + decay * values[name])
        assert float(model.weight) == pytest.approx(values["weight"], rel=1e-9)
        assert float(model.bias) == pytest.approx(values["bias"], rel=1e-9)


class TestLearningRate:
    def test_warm_up_is_linear_and_ends_at_the_peak(self):
        rates = [learning_rate(CONFIG, step=step, steps=100) for step in range(10)]
        assert rates == pytest.approx([0.01 * (step + 1) / 10 for step in range(10)])

    def test_then_half_a_cosine_down_to_the_end(self):
        for step in range(10, 101):
            expected = 0.001 + 0.5 * 0.009 * (1 + math.cos(math.pi * (step - 10) / 90))
            assert learning_rate(CONFIG, step=step, steps=100) == pytest.approx(expected, rel=1e-12)
        assert learning_rate(CONFIG, step=10, steps=100) == pytest.approx(0.01)
        assert learning_rate(CONFIG, step=55, steps=100) == pytest.approx((0.01 + 0.001) / 2)

    def test_no_warm_up_and_a_warm_up_longer_than_the_run(self):
        assert learning_rate(CONFIG.model_copy(update={"warmup_steps": 0}), step=0, steps=5) == pytest.approx(0.01)
        assert learning_rate(CONFIG.model_copy(update={"warmup_steps": 50}), step=4, steps=5) == pytest.approx(0.001)
