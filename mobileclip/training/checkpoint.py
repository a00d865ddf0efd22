"""Checkpoints: weights, running mean, optimizer and random state as safetensors, whole or not at all.

Every run has a folder of its own (`of_run`): another run in the same place, of other settings or data, neither resumes
from its checkpoints nor replaces them. It holds `step-NNNNNNNNN/` per checkpoint with

- `model.safetensors`: parameters and buffers, and `mean.safetensors`: their running mean, where there is one,
- `optimizer.safetensors`: moments, and the random state of every process,
- `state.json`: step, position in the data, learning curve, and the digests of the others; written last, so a folder
  without it is no checkpoint,

and `best-NNNNNNNNN/` with the weights that scored best so far. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from mobileclip import storage
from mobileclip.errors import DataError, IntegrityError

logger = logging.getLogger(__name__)

STATE, MODEL, MEAN, OPTIMIZER = "state.json", "model.safetensors", "mean.safetensors", "optimizer.safetensors"
BEST = "best.json"
_VERSION = 3


@dataclass
class Snapshot:
    """A run between two steps.

    Attributes:
        step: Steps done.
        samples: Samples seen: the position in the endless order of the data.
        history: Points of the learning curve so far.
        mean: Running mean of the weights; empty = none.
        scaler: State of the gradient scaler; empty = none.
        random: uint8 [processes, n]: torch's CPU generator of every process.
        cuda_random: The same of their CUDA generators; empty = none.
    """

    step: int = 0
    samples: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    mean: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    random: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.uint8))
    cuda_random: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.uint8))


def of_run(folder: str, key: str) -> str:
    """The folder of one run among those that may have begun in `folder`."""
    return storage.join(folder, f"run-{hashlib.sha256(key.encode()).hexdigest()[:12]}")


def save(
    folder: str,
    snapshot: Snapshot,
    *,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int = 1,
    best: int = 0,
) -> None:
    """Write a checkpoint, then remove those it replaces.

    Args:
        folder: Folder or URI of the run.
        snapshot: Where the run is.
        key: Digest of everything that decides the run; another run never resumes from this.
        model: Its parameters and buffers are saved.
        optimizer: AdamW.
        keep: Newest checkpoints that stay.
        best: Step of the best weights, which stay; other best ones go.
    """
    state = {
        f"optimizer/{index}/{name}": torch.as_tensor(value)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }
    state |= {"random": snapshot.random, "cuda_random": snapshot.cuda_random}
    files = {MODEL: _bytes(model.state_dict()), OPTIMIZER: _bytes(state)}
    if snapshot.mean:
        files[MEAN] = _bytes(snapshot.mean)
    target = storage.join(folder, _name("step", snapshot.step))
    for name, data in files.items():
        storage.write_bytes(storage.join(target, name), data)
    header = {
        "version": _VERSION, "key": key, "step": snapshot.step, "samples": snapshot.samples,
        "processes": len(snapshot.random), "history": snapshot.history, "scaler": snapshot.scaler,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }  # fmt: skip
    storage.write_bytes(storage.join(target, STATE), _signed(header))
    steps = _steps(folder, "step")
    # Later ones than this are what the run went back from: damaged, or of a time before it.
    later = [old for old in steps if old > snapshot.step]
    for old in later + steps[: len(steps) - len(later)][:-keep]:
        _remove_step(storage.join(folder, _name("step", old)))
    for old in _steps(folder, "best"):
        if old != best:
            _remove_step(storage.join(folder, _name("best", old)))


def find(folder: str, *, key: str) -> int:
    """Step of the newest whole checkpoint of this run; 0 where there is none.

    Raises:
        IntegrityError: All checkpoints of the run are damaged: starting anew is the user's decision.
    """
    damage: IntegrityError | None = None
    for step in reversed(_steps(folder, "step")):
        try:
            header = _header(folder, step)
            if not header or header["key"] != key:
                continue
            for name, sha256 in header["sha256"].items():
                _read(folder, step, name, sha256)
        except IntegrityError as error:
            logger.warning("training: %s", error)
            damage = damage or error
        else:
            return step
    if damage:
        raise damage
    return 0


def load(folder: str, step: int, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """Restore model and optimizer in place.

    Args:
        folder: Folder or URI of the run.
        step: What `find` gave.
        model: The run's.
        optimizer: The run's.

    Raises:
        IntegrityError: A file is damaged.
    """
    header = _header(folder, step)
    digests = header["sha256"]
    model.load_state_dict(load_safetensors(_read(folder, step, MODEL, digests[MODEL])))
    tensors = load_safetensors(_read(folder, step, OPTIMIZER, digests[OPTIMIZER]))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, kind = name.split("/", 2)
            state.setdefault(int(index), {})[kind] = _laid_out(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    mean = load_safetensors(_read(folder, step, MEAN, digests[MEAN])) if MEAN in digests else {}
    return Snapshot(
        step, int(header["samples"]), header["history"], mean, header["scaler"], tensors["random"],
        tensors["cuda_random"],
    )  # fmt: skip


def others(folder: str) -> bool:
    """Whether beside this run's folder lie checkpoints of other runs."""
    parent, _, own = folder.rpartition("/")
    return any(name.endswith(STATE) and not name.startswith(f"{own}/") for name in storage.list_files(parent))


def save_best(folder: str, step: int, weights: Mapping[str, Tensor]) -> None:
    """Keep the weights after `step` as the best so far."""
    target, data = storage.join(folder, _name("best", step)), _bytes(weights)
    storage.write_bytes(storage.join(target, MODEL), data)
    storage.write_bytes(storage.join(target, BEST), _signed({"step": step, "sha256": hashlib.sha256(data).hexdigest()}))


def load_best(folder: str, step: int) -> dict[str, Tensor]:
    """The weights that `save_best` kept.

    Raises:
        IntegrityError: They are gone or damaged.
    """
    target = storage.join(folder, _name("best", step))
    uri = storage.join(target, MODEL)
    try:
        found = _verified(storage.join(target, BEST))
        return load_safetensors(storage.read_bytes(uri, sha256=found["sha256"]))
    except (DataError, SafetensorError) as error:
        raise IntegrityError(f"checkpoint '{uri}' is damaged: {str(error).rstrip('.')}.") from None


def remove(folder: str) -> None:
    """Remove all checkpoints below a folder: of one run, or of all that began there."""
    for name in sorted(storage.list_files(folder), key=lambda name: not name.endswith(STATE)):
        storage.delete(storage.join(folder, name))  # without its state a folder is no checkpoint
    if not storage.is_s3(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path(folder).parent.rmdir()  # where nothing else was written


def _remove_step(folder: str) -> None:
    storage.delete(storage.join(folder, STATE))  # from here on it is no checkpoint
    for name in storage.list_names(folder):
        storage.delete(storage.join(folder, name))
    if not storage.is_s3(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _header(folder: str, step: int) -> dict[str, Any]:
    uri = storage.join(folder, _name("step", step), STATE)
    if not storage.exists(uri):
        return {}
    header = _verified(uri)
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        return {}
    return header


def _signed(content: dict[str, Any]) -> bytes:
    """JSON that says its own digest, which vouches for the digests in it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "digest": digest}, sort_keys=True) + "\n").encode()


def _verified(uri: str) -> dict[str, Any]:
    """What `_signed` wrote.

    Raises:
        IntegrityError: It was changed since.
    """
    try:
        content = json.loads(storage.read_bytes(uri))
        digest = content.pop("digest", None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"checkpoint '{uri}' is damaged: {error}.") from None
    is_older = digest is None and content.get("version", _VERSION) != _VERSION
    if not is_older and json.loads(_signed(content))["digest"] != digest:
        raise IntegrityError(f"checkpoint '{uri}' is damaged: its own digest is another one.")
    return content  # type: ignore[no-any-return]


def _read(folder: str, step: int, name: str, sha256: str) -> bytes:
    uri = storage.join(folder, _name("step", step), name)
    try:
        return storage.read_bytes(uri, sha256=sha256)
    except (DataError, IntegrityError):
        raise IntegrityError(f"checkpoint '{uri}' is damaged: it is not what was written.") from None


def _steps(folder: str, kind: str) -> list[int]:
    prefix = f"{kind}-"
    names = [name.removeprefix(prefix) for name in storage.list_names(folder) if name.startswith(prefix)]
    return sorted(int(name) for name in names if name.isdigit())


def _name(kind: str, step: int) -> str:
    return f"{kind}-{step:09d}"


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save_safetensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """The value in its parameter's memory layout: the fused optimizer walks through both as they lie."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
