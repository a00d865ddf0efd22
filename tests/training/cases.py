"""Steps that must come out the same on one process and on two; as a script, one process of `torchrun`."""

import sys
import time
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from mobileclip.config import Training
from mobileclip.models import zoo
from mobileclip.training import checkpoint
from mobileclip.training.backward import backward
from mobileclip.training.batch_norm import global_batch_norm
from mobileclip.training.captioning import coca_objective
from mobileclip.training.clip_objective import ClipObjective, Reinforcement, TeacherAffinity
from mobileclip.training.loop import train
from mobileclip.training.objective import Halves
from mobileclip.training.projected import Projected
from mobileclip.training.replica import Replicas
from mobileclip.training.world import World, join
from tests.training import towers

_BOTH = {"teachers": (TeacherAffinity("a", 9.0, -2.0), TeacherAffinity("b.c", 14.0, -4.0))}


@dataclass(frozen=True)
class Case:
    reinforcement: Reinforcement
    rows: int = 6
    chunks: int = 1
    batch_norm: bool = True
    synthetic: bool = True
    dropout: float = 0.0
    frozen: str = ""


CASES = {
    "plain": Case(Reinforcement(), synthetic=False),
    "reinforced": Case(Reinforcement(distill_weight=0.6, **_BOTH)),
    "distilled": Case(Reinforcement(distill_weight=1.0, **_BOTH)),
    "cross-entropy": Case(Reinforcement(distill_weight=1.0, divergence="cross_entropy", **_BOTH)),
    "sigmoid": Case(Reinforcement(distill_weight=0.6, affinity="sigmoid", **_BOTH)),
    "features": Case(Reinforcement(distill_weight=0.6, feature_weight=0.5, **_BOTH)),
    "feature distance alone": Case(Reinforcement(feature_weight=2.0, feature_distance="mse", **_BOTH)),
    "bank": Case(Reinforcement(distill_weight=0.6, feature_weight=0.5, bank_weight=1.5, **_BOTH)),
    "frozen": Case(Reinforcement(distill_weight=0.6, **_BOTH), frozen="text"),
    "uneven": Case(Reinforcement(distill_weight=0.6, **_BOTH), rows=7),
    "accumulated": Case(Reinforcement(distill_weight=0.6, feature_weight=0.5, **_BOTH), chunks=3, batch_norm=False),
    "accumulated bank": Case(Reinforcement(distill_weight=0.6, bank_weight=1.5, **_BOTH), chunks=3, batch_norm=False),
    "accumulated, uneven": Case(Reinforcement(distill_weight=0.6, **_BOTH), rows=9, chunks=2, batch_norm=False),
}


def _full() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def step(case: Case, world: World) -> dict[str, torch.Tensor]:
    """Losses, gradients and buffers after one backward pass; the batch is this process's share."""
    clip = towers.clip(batch_norm=case.batch_norm, dropout=case.dropout)
    trained = clip.model
    if case.frozen:
        clip.model.get_submodule(case.frozen).requires_grad_(False)
    if case.reinforcement.feature_weight:
        trained = Projected(clip.model, clip.embed_dim, towers.TEACHERS).double()
    bank = towers.bank(tuple(case.reinforcement.scales.values())) if case.reinforcement.bank_weight else None
    objective = ClipObjective(clip, case.reinforcement, world, total=case.rows, trained=trained, bank=bank)
    whole = towers.batch(case.rows, synthetic=case.synthetic)
    own = {name: value[world.rows(case.rows)] for name, value in whole.items()}
    with global_batch_norm(trained, world):
        losses, features = backward(Replicas(trained, objective, world), own, chunks=case.chunks, autocast=_full)
    found = {f"loss/{name}": world.sum(value.detach().clone()) for name, value in losses.items()}
    found |= {f"grad/{name}": p.grad for name, p in trained.named_parameters() if p.grad is not None}
    found |= {f"buffer/{name}": value.clone() for name, value in trained.named_buffers()}
    found |= {name: torch.tensor(value) for name, value in objective.measure(features, own).items()}
    return found


CAPTIONS = [
    "a red circle",
    "a picture of a blue square on white",
    "cross",
    "a drawing that shows a green triangle",
    "x",
]


def captioner_step(world: World, *, chunks: int = 1, contrastive_weight: float = 1.0) -> dict[str, torch.Tensor]:
    """The same for a captioner, in single precision: captions of different lengths, three rows on one process."""
    torch.manual_seed(0)
    clip = zoo.create("tiny-coca")
    clip.model.train()
    objective = coca_objective(clip, world, total=5, caption_weight=2.0, contrastive_weight=contrastive_weight)
    pixels = torch.randint(256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = world.rows(5)
    own = {"image": pixels[rows], "text": clip.tokenizer(CAPTIONS)[rows]}
    losses, _ = backward(Replicas(clip.model, objective, world), own, chunks=chunks, autocast=_full)
    found = {f"loss/{name}": world.sum(value.detach().clone()) for name, value in losses.items()}
    return found | {f"grad/{name}": p.grad for name, p in clip.model.named_parameters() if p.grad is not None}


def dropped(world: World, folder: str) -> torch.Tensor:
    """What a captioner's neck gets in two steps behind a frozen trunk that sees ones: [steps, rows, places, width]."""
    torch.manual_seed(0)
    clip = zoo.create("lite-coca")
    seen: list[torch.Tensor] = []
    neck = clip.model.visual.neck
    neck.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    rows = world.rows(4)
    ones = torch.ones(4, len(clip.model.visual.positional_embedding), neck.in_features)
    batch = {"features": ones[rows], "text": clip.tokenizer(CAPTIONS)[:4][rows]}
    objective = coca_objective(clip, world, total=4, caption_weight=1.0, contrastive_weight=0.0, dropout=0.5)
    config = Training(steps=2, batch_size=4, log_every=2, checkpoint_every=0)
    train(
        clip.model, objective, lambda first, last: iter([batch] * (last - first)), config,
        key="dropped", folder=folder, title="dropped",
    )  # fmt: skip
    # Before the first step a pass may look for parameters without a gradient: it takes no draw from the steps.
    *probes, first, second = seen
    assert all(torch.equal(probe, first) for probe in probes)
    return torch.stack([first, second])


def best(world: World, folder: str) -> torch.Tensor:
    """Weights of the best of two points, which the first process removes at once while another is late to read them."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    scores = iter((2.0, 1.0))
    if not world.main:
        read = checkpoint.load_best

        def late(*arguments):
            time.sleep(1)
            return read(*arguments)

        checkpoint.load_best = late
    config = Training(
        steps=2, batch_size=world.size, log_every=1, checkpoint_every=0, keep_weights="best",
    )  # fmt: skip
    train(
        model, Halves(lambda batch: {"y": model(batch["x"])}, lambda features, _: {"loss": features["y"].sum()}),
        lambda first, last: iter([{"x": torch.ones(1, 2)}] * (last - first)), config,
        key="best", folder=folder, title="best", validate=lambda: {"score": next(scores)},
    )  # fmt: skip
    if world.main:
        checkpoint.remove(folder)
    return model.weight.detach()


def timeout() -> torch.Tensor:
    """Seconds after which a process that waits for the others gives up."""
    group = torch.distributed.distributed_c10d._get_default_group()
    return torch.tensor(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


if __name__ == "__main__":
    world = join()
    results = {f"{name}|{key}": value for name, case in CASES.items() for key, value in step(case, world).items()}
    results |= {f"captioner {n}|{key}": v for n in (1, 2) for key, v in captioner_step(world, chunks=n).items()}
    results |= {f"captions alone|{key}": v for key, v in captioner_step(world, contrastive_weight=0.0).items()}
    results |= {f"dropped|{n}": dropped(world, f"{sys.argv[1]}/checkpoint") for n in ("once", "again")}
    results |= {"best|weight": best(world, f"{sys.argv[1]}/best/checkpoint"), "timeout|seconds": timeout()}
    save_file({k: v.contiguous() for k, v in results.items()}, f"{sys.argv[1]}/{world.rank}.safetensors")
