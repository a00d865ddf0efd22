"""Averaging two models of one architecture: fine-tune on a domain and keep what the model could do before."""

from collections.abc import Mapping

import torch

State = Mapping[str, torch.Tensor]


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's weights and statistics as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def interpolate(start: State, end: State, *, start_share: float) -> dict[str, torch.Tensor]:
    """WiSE-FT (Wortsman et al., arXiv 2109.01903): start_share * start + (1 - start_share) * end, tensor by tensor.

    Models that were fine-tuned from one start lie in one basin, so the average of their weights is a model that has
    most of both abilities. Statistics of batch norms are averaged alike; counters are the end's. The logit scale is
    averaged as the logarithm it is stored as.

    Args:
        start: Weights before the fine-tuning.
        end: Weights after it, under the same names.
        start_share: 0 = the end's weights to the last bit, 1 = the start's.

    Raises:
        ValueError: The names or shapes differ.
    """
    if start.keys() != end.keys() or any(start[name].shape != end[name].shape for name in start):
        raise ValueError("interpolate: the two models are of different architectures.")
    if start_share in {0.0, 1.0}:
        chosen = start if start_share else end
        return {name: value.clone() for name, value in chosen.items()}
    return {
        name: torch.lerp(end[name], start[name], start_share) if end[name].is_floating_point() else end[name].clone()
        for name in end
    }


def mix_in(model: torch.nn.Module, start: State, *, start_share: float) -> None:
    """Give a fine-tuned model its share of the weights it started from, in place.

    Args:
        model: After the fine-tuning; `logit_bias` and the like that training added have no start and stay.
        start: `snapshot` from before it.
        start_share: As in `interpolate`.
    """
    end = model.state_dict()
    shared = {name: value for name, value in end.items() if name in start}
    known = {name: start[name].to(value.device) for name, value in shared.items()}
    model.load_state_dict({**end, **interpolate(known, shared, start_share=start_share)})
