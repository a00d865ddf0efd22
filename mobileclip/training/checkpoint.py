"""Checkpoints: weights, running mean, optimizer and random state as safetensors, whole or not at all."""

import json
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from mobileclip import storage
from mobileclip.errors import IntegrityError

FILE = "checkpoint.safetensors"


def save(
    folder: str,
    *,
    key: str,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    mean: dict[str, torch.Tensor],
    history: list[dict[str, Any]],
) -> None:
    """Write the state after `step` steps.

    Args:
        folder: Folder or URI.
        key: Digest of everything that decides the run; another run never resumes from this file.
        step: Steps done.
        model: Its parameters and buffers are saved.
        optimizer: AdamW.
        mean: Running mean of the weights; empty = none.
        history: Points of the learning curve so far.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"mean/{name}": value for name, value in mean.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["random"] = torch.get_rng_state()
    header = {"header": json.dumps({"key": key, "step": step, "history": history})}
    data = save_safetensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata=header)
    storage.write_bytes(storage.join(folder, FILE), data)


def load(
    folder: str, *, key: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Restore a run in place.

    Returns:
        (steps done, running mean, history); (0, {}, []) where there is no checkpoint of this run.

    Raises:
        IntegrityError: The file is damaged.
    """
    uri = storage.join(folder, FILE)
    if not storage.exists(uri):
        return 0, {}, []
    data = storage.read_bytes(uri)
    try:
        tensors = load_safetensors(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["header"])
    except Exception as error:  # noqa: BLE001 - safetensors raises its own SafetensorError
        raise IntegrityError(f"checkpoint '{uri}' is damaged: {error}.") from None
    if header["key"] != key:
        return 0, {}, []
    model.load_state_dict(_part(tensors, "model/"))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _part(tensors, "optimizer/").items():
        index, _, field = name.partition("/")
        state.setdefault(int(index), {})[field] = _laid_out(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])
    return int(header["step"]), _part(tensors, "mean/"), header["history"]


def _laid_out(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The value in its parameter's memory layout: the fused optimizer walks through both as they lie."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
