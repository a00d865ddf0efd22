"""What is said before the first step. What is refused there: test_loop.py, through `train` itself."""

import pytest
from torch import nn

from mobileclip.config import Optimizer, Training
from mobileclip.training.checks import warn

ONCE = "training.optimizer.warmup_steps: got 30 for 20 steps: the rate ends at 67 % of its peak."
PARTS = (
    "training.accumulate: got 2: the model's 1 batch norms see one part of the batch at a time; "
    "the result is not that of the whole batch."
)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({}, []), ({"accumulate": 2}, [PARTS]), ({"steps": 20}, [ONCE]), ({"accumulate": 2, "steps": 20}, [ONCE, PARTS])],
)
def test_what_is_seldom_meant_is_said(caplog, changes, wanted):
    config = Training(steps=30, optimizer=Optimizer(warmup_steps=30)).model_copy(update=changes)
    warn(config, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4)))
    assert [record.getMessage() for record in caplog.records] == wanted


def test_frozen_batch_norms_and_other_norms_do_not_matter(caplog):
    frozen = nn.BatchNorm2d(4).requires_grad_(False)
    warn(Training(accumulate=2, steps=2000), nn.Sequential(frozen, nn.LayerNorm(4)))
    assert caplog.text == ""
