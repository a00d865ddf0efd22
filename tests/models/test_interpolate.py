"""Weight averaging: the formula, its ends, and that a mixed model is between its parents."""

import pytest
import torch

from mobileclip.models.interpolate import interpolate, mix_in, snapshot


def _model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    model(torch.randn(8, 4) * (seed + 1))
    return model.eval()


def test_formula_and_ends():
    start, end = _model(0).state_dict(), _model(1).state_dict()
    mixed = interpolate(start, end, start_share=0.3)
    for name, value in mixed.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.3 * start[name] + 0.7 * end[name])
    assert mixed["1.num_batches_tracked"] == end["1.num_batches_tracked"]
    for share, expected in ((0.0, end), (1.0, start)):
        assert all(torch.equal(v, expected[n]) for n, v in interpolate(start, end, start_share=share).items())


def test_in_place_on_a_trained_model_with_a_tensor_that_training_added():
    model, other = _model(0), _model(1)
    start = snapshot(model)
    model.load_state_dict(other.state_dict())
    model.register_parameter("logit_bias", torch.nn.Parameter(torch.tensor(-10.0)))
    x = torch.randn(5, 4)
    mix_in(model, start, start_share=0.5)
    torch.testing.assert_close(model[0](x), (_model(0)[0](x) + other[0](x)) / 2)
    assert model.logit_bias == -10
    assert torch.equal(start["0.weight"], _model(0)[0].weight)


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="different architectures"):
        interpolate({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, start_share=0.5)
