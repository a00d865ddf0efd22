"""The sections against the prepared dataset: splits and their sizes, caption fields, plain fields, classes."""

from collections.abc import Iterator, Sequence

from mobileclip.config import Params
from mobileclip.preflight.facts import Facts
from mobileclip.preflight.problem import Problem, unknown

_JUDGED = ("test", "validation")
_PROVED = ("test", "validation", "train")


def check(params: Params, facts: Facts) -> Iterator[Problem]:
    """Problems of a chain on these data."""
    yield from _training(params, facts)
    yield from _evaluate(params, facts)
    yield from _export(params, facts)


def _training(params: Params, facts: Facts) -> Iterator[Problem]:
    captioner = params.finetune_captioner
    wanted = [
        ("train_teacher.captions", name) for name in params.train_teacher.captions if params.train_teacher.teachers
    ]
    if captioner.enabled:
        wanted += [("finetune_captioner.pretrain_field", captioner.pretrain_field)] if not captioner.pretrained else []
        wanted.append(("finetune_captioner.finetune_field", captioner.finetune_field))
    wanted += [("reinforce.caption_field", params.reinforce.caption_field)]
    wanted += [("distill.caption_field", params.distill.caption_field)]
    if not facts.samples.get("train"):
        yield Problem("prepare.validation_share", _sizes(facts), "samples in the split train")
        return
    for key, name in wanted:
        yield from _caption_field(key, name, "train", facts)
    for key, splits in (("caption.splits", params.caption.splits), ("reinforce.splits", params.reinforce.splits)):
        if "train" not in splits:
            yield Problem(key, f"{splits}", "'train' among them, which the student learns from", "train")
    yield from _trainings(params, facts)
    if params.calibrate.enabled and params.calibrate.student and not facts.samples.get("validation"):
        yield Problem(
            "calibrate.student", f"'{params.calibrate.student}'", "an empty one: there is no validation split"
        )


def _trainings(params: Params, facts: Facts) -> Iterator[Problem]:
    captioner = params.finetune_captioner
    kinds = {
        f"train_teacher.teachers.{i}.training": teacher.training
        for i, teacher in enumerate(params.train_teacher.teachers)
    }
    kinds |= {"distill.training": params.distill.training}
    if captioner.enabled:
        kinds |= {"finetune_captioner.finetune": captioner.finetune, "finetune_captioner.pretrain": captioner.pretrain}
    for key, training in kinds.items():
        if training.keep_weights == "best" and not facts.samples.get("validation"):
            yield Problem(f"{key}.keep_weights", "'best'", "'last': there is no validation split to choose by", "last")
        rows = min(training.batch_size, facts.samples["train"])
        if rows < training.accumulate:
            yield Problem(f"{key}.accumulate", f"{training.accumulate} parts of {rows} samples", f"at most {rows}")


def _evaluate(params: Params, facts: Facts) -> Iterator[Problem]:
    evaluate = params.evaluate
    split = facts.held_out(evaluate.split, _JUDGED)
    if not facts.samples.get(split):
        yield unknown("evaluate.split", evaluate.split, _there(facts), "a split with samples")
        return
    yield from _caption_field("evaluate.retrieval_field", evaluate.retrieval_field, split, facts)
    for index, task in enumerate(evaluate.classifications):
        yield from _plain_field(f"evaluate.classifications.{index}.field", task.field, split, facts, classes=True)
    if evaluate.slice_field:
        yield from _plain_field("evaluate.slice_field", evaluate.slice_field, split, facts)
    if evaluate.negative_field:
        yield from _caption_field("evaluate.negative_field", evaluate.negative_field, split, facts)
    if (evaluate.linear_probe or evaluate.knn) and not facts.samples.get(evaluate.probe_split):
        yield unknown("evaluate.probe_split", evaluate.probe_split, _there(facts), "a split with samples")


def _export(params: Params, facts: Facts) -> Iterator[Problem]:
    export = params.export
    split = facts.held_out(export.split, _PROVED)
    count = facts.samples.get(split, 0)
    if count < 2:
        near = max(facts.samples, key=lambda name: facts.samples[name], default="")
        yield Problem("export.split", f"'{export.split}' with {count} samples", "a split with at least 2", near)
        return
    if export.zero_shot_field:
        yield from _plain_field("export.zero_shot_field", export.zero_shot_field, split, facts)
    for index, bank in enumerate(export.prompt_banks):
        if bank.field:
            yield from _plain_field(f"export.prompt_banks.{index}.field", bank.field, split, facts)
    if any(precision.startswith("int") for precision in export.precisions):
        held = facts.samples.get(export.calibration_split, 0) - (
            export.samples if export.calibration_split == split else 0
        )
        if held < 2:
            want = f"a split with samples beyond the {export.samples} of the proof"
            yield Problem("export.calibration_split", f"'{export.calibration_split}'", want, "train")


def _caption_field(key: str, name: str, split: str, facts: Facts) -> Iterator[Problem]:
    there = facts.captions.get(split, {})
    if not there.get(name):
        yield unknown(
            key, name, sorted(n for n, count in there.items() if count), f"a caption field of the split {split}"
        )


def _plain_field(key: str, name: str, split: str, facts: Facts, *, classes: bool = False) -> Iterator[Problem]:
    there = facts.fields.get(split, {})
    if not there.get(name):
        yield unknown(key, name, sorted(n for n, count in there.items() if count), f"a field of the split {split}")
    elif classes and facts.classes.get(split, {}).get(name, 0) < 2:
        yield Problem(key, f"'{name}', which has one value", "a field with at least two values")


def _there(facts: Facts) -> Sequence[str]:
    return [split for split, count in facts.samples.items() if count]


def _sizes(facts: Facts) -> str:
    return ", ".join(f"{split} {count}" for split, count in facts.samples.items()) or "no samples"
