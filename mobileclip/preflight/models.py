"""Whether every model that the chain names can be had: known name and tag, folder there, hub in reach, towers given."""

from collections.abc import Iterator
from dataclasses import dataclass

from mobileclip import storage
from mobileclip.config import Params
from mobileclip.errors import MobileClipError
from mobileclip.models import hub, zoo
from mobileclip.models.checkpoints import SUFFIXES
from mobileclip.preflight.problem import Problem, unknown


@dataclass(frozen=True)
class Reference:
    """A model that a section names.

    Attributes:
        key: Dotted name of the key `model`.
        model: Its value.
        pretrained: The key `pretrained` beside it.
        weights: Whether it must come with weights, and not as an architecture to train from scratch.
    """

    key: str
    model: str
    pretrained: str = ""
    weights: bool = False


def check(params: Params, *, towers: str = "") -> Iterator[Problem]:
    """Problems of models and pretrained towers; `trained:NAME` is compared with `train_teacher` elsewhere."""
    for reference in references(params):
        yield from _problems(reference)
    yield from _towers(params, towers)


def references(params: Params) -> list[Reference]:
    """Every model that a run of the chain loads or builds."""
    found = [
        Reference(f"train_teacher.teachers.{i}.model", teacher.model, teacher.pretrained)
        for i, teacher in enumerate(params.train_teacher.teachers)
    ]
    if params.filter.enabled:
        found.append(Reference("filter.model", params.filter.model, params.filter.pretrained, weights=True))
    if params.finetune_captioner.enabled:
        found.append(
            Reference("finetune_captioner.model", params.finetune_captioner.model, params.finetune_captioner.pretrained)
        )
    if params.caption.enabled:
        found.append(Reference("caption.model", params.caption.model, params.caption.pretrained, weights=True))
        if params.caption.score_model and params.caption.score_samples:
            found.append(Reference("caption.score_model", params.caption.score_model, weights=True))
    found += [
        Reference(f"reinforce.teachers.{i}.model", teacher.model, teacher.pretrained, weights=True)
        for i, teacher in enumerate(params.reinforce.teachers)
    ]
    if params.calibrate.enabled and params.calibrate.student:
        found.append(Reference("calibrate.student", params.calibrate.student))
    return [*found, Reference("distill.model", params.distill.model, params.distill.pretrained)]


def _problems(reference: Reference) -> Iterator[Problem]:
    key, model, tag = reference.key, reference.model, reference.pretrained
    if model == "trained" or model.startswith("trained:"):
        return
    if model.startswith("local-dir:"):
        folder = model.removeprefix("local-dir:")
        if not storage.exists(storage.join(folder, zoo.CONFIG_FILE)):
            yield Problem(key, f"'{model}'", f"a folder with {zoo.CONFIG_FILE} and {zoo.WEIGHTS_FILE}")
        return
    if not model.startswith(("hf-hub:", "timm:")) and model not in zoo.known_names():
        yield unknown(key, model, zoo.known_names(), "a name of `mobileclip models`, open_clip, hf-hub: or local-dir:")
        return
    if model.startswith("timm:"):
        yield from _custom(key, model)
    elif not model.startswith("hf-hub:"):
        yield from _tag(reference)
    repository = zoo.hub_repository(model, tag)
    if repository and not hub.is_reachable(repository):
        got = f"'{model}'" + (f" with '{tag}'" if tag else "")
        yield Problem(key, f"{got}, whose hub cannot be reached", "a network, or the weights in the hub's cache")


def _tag(reference: Reference) -> Iterator[Problem]:
    key, tag = f"{reference.key.rpartition('.')[0]}.pretrained", reference.pretrained
    if tag.endswith(SUFFIXES):
        if not storage.exists(tag):
            yield Problem(key, f"'{tag}'", "a weights file that is there")
        return
    tags = zoo.weight_tags(reference.model)
    if (tag or reference.weights) and tag not in tags:
        yield unknown(key, tag, tags, f"weights of '{reference.model}'")


def _custom(key: str, model: str) -> Iterator[Problem]:
    try:
        zoo.architecture(model)
    except MobileClipError as error:
        yield Problem(key, f"'{model}'", str(error).removeprefix("model: ").rstrip("."))


def _towers(params: Params, towers: str) -> Iterator[Problem]:
    named = [
        (f"train_teacher.teachers.{index}.{key}", getattr(teacher, key), needs)
        for index, teacher in enumerate(params.train_teacher.teachers)
        for key, needs in (("image_weights", ""), ("text_weights", "config.json"))
    ]
    if params.finetune_captioner.enabled:
        named.append(("finetune_captioner.image_weights", params.finetune_captioner.image_weights, ""))
    there: set[str] = set()
    for key, value, needs in named:
        if not value:
            continue
        if not towers:
            yield Problem(key, f"'{value}'", "an input 'towers' (--towers), the folder that it lies in")
        elif not storage.exists(storage.join(towers, value, needs) if needs else storage.join(towers, value)):
            there = there or {name.split("/")[0] for name in storage.list_files(towers)}
            yield unknown(key, value, sorted(there), f"a name in '{towers}'")
