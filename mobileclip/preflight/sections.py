"""The sections of the chain against each other: names that one stage makes and another one reads."""

import re
from collections.abc import Iterator

from mobileclip.config import Params
from mobileclip.preflight.problem import Problem, unknown

_TRAINED = "trained:"
_CUTS = (1, 5, 10)
_ZERO_SHOT = ("top1", "top5", "mean_per_class", "worst_class", "ece", "worst_slice")


def check(params: Params) -> Iterator[Problem]:
    """Problems that no data are needed to see."""
    yield from _teachers(params)
    yield from _captions(params)
    yield from _fields(params)
    yield from _metrics(params)
    export = params.export
    if export.qat_steps and export.split == export.calibration_split:
        want = "another split than calibration_split: fine-tuning must not see the samples of the proof"
        yield Problem("export.split", f"'{export.split}'", want)
    if params.evaluate.probe_split == params.evaluate.split and (params.evaluate.linear_probe or params.evaluate.knn):
        yield Problem("evaluate.probe_split", f"'{params.evaluate.probe_split}'", "another split than evaluate.split")


def _teachers(params: Params) -> Iterator[Problem]:
    trained = [teacher.name for teacher in params.train_teacher.teachers]
    stored = [teacher.name for teacher in params.reinforce.teachers]
    named = {"filter.model": params.filter.model} if params.filter.enabled else {}
    named |= {f"reinforce.teachers.{i}.model": teacher.model for i, teacher in enumerate(params.reinforce.teachers)}
    for key, model in named.items():
        if model == "trained" or (model.startswith(_TRAINED) and model.removeprefix(_TRAINED) not in trained):
            known = [f"{_TRAINED}{name}" for name in trained]
            yield unknown(key, model, known, "published weights, or a teacher of train_teacher.teachers")
    if not stored:
        yield Problem("reinforce.teachers", "an empty list", "at least one teacher")
    for key, names in (("distill.teachers", params.distill.teachers), ("calibrate.given", params.calibrate.given)):
        yield from (
            unknown(key, name, stored, "a teacher of reinforce.teachers") for name in names if name not in stored
        )


def _captions(params: Params) -> Iterator[Problem]:
    caption, captioner = params.caption, params.finetune_captioner
    if caption.enabled and caption.model == "trained" and not captioner.enabled:
        yield Problem(
            "caption.model", "'trained'", "a published CoCa, or finetune_captioner.enabled or caption.enabled otherwise"
        )
    written = [caption.name] if caption.enabled else []
    what = "a caption column" if written else "an empty list while caption is off"
    for name in params.reinforce.captions:
        if name not in written:
            yield unknown("reinforce.captions", name, written, what)
    for key, names in (
        ("distill.synthetic", params.distill.synthetic),
        ("calibrate.synthetic", params.calibrate.synthetic),
    ):
        for name in names:
            if name not in params.reinforce.captions or name not in written:
                yield unknown(
                    key, name, [n for n in params.reinforce.captions if n in written], f"{what} that reinforce embeds"
                )


def _fields(params: Params) -> Iterator[Problem]:
    """Training from stored embeddings draws its captions from the field that they were made of."""
    stored = params.reinforce.caption_field
    if params.distill.caption_field != stored:
        want = f"'{stored}' (reinforce.caption_field), whose embeddings are stored"
        yield Problem("distill.caption_field", f"'{params.distill.caption_field}'", want, stored)
    if params.calibrate.student and params.calibrate.caption_field != stored:
        want = f"'{stored}' (reinforce.caption_field), whose embeddings are stored"
        yield Problem("calibrate.caption_field", f"'{params.calibrate.caption_field}'", want, stored)


def scores(params: Params) -> list[str]:
    """Names of the scores that evaluate has for every model, without a model before them."""
    names = [f"retrieval/{side}/r{k}" for side in ("mean", "i2t", "t2i") for k in _CUTS]
    names += [f"retrieval/{side}/median_rank" for side in ("i2t", "t2i")]
    return names + [f"zero_shot/{task.field}/{name}" for task in params.evaluate.classifications for name in _ZERO_SHOT]


def _metrics(params: Params) -> Iterator[Problem]:
    evaluate, gate = params.evaluate, params.promote.gate
    known = scores(params)
    if not _is_extra(evaluate.headline) and evaluate.headline not in known:
        yield unknown("evaluate.headline", evaluate.headline, known, "a score that evaluate produces")
    models = ["student", *(["control", "delta"] if params.distill.control else [])]
    produced = [f"{model}/{name}" for name in known for model in models]
    for key, name in [
        ("promote.gate.metric", gate.metric),
        *((f"promote.gate.minimums.{name}", name) for name in gate.minimums),
        *((f"promote.gate.maximums.{name}", name) for name in gate.maximums),
    ]:
        bare = re.sub(r"/(low|high)$", "", name)
        if (
            name.startswith(("export/", "timings/", "cost/", "slice/"))
            or name in {"samples", "texts"}
            or _is_extra(bare)
        ):
            continue  # their names depend on the programs and the values that the data have
        bare = re.sub(r"^(chance|majority)/", "student/", bare)
        if bare not in produced:
            yield unknown(key, name, produced, "a metric that evaluate produces")
    if gate.beat_control and not params.distill.control:
        yield Problem("promote.gate.beat_control", "true", "distill.control on: no control is trained to compare with")


def _is_extra(name: str) -> bool:
    """A score of what a section asks for beyond retrieval and zero-shot tasks."""
    return bool(
        re.match(
            r"^((student|control|delta|chance|majority)/)?(probe|linear|knn|robustness|resolution|composition|negative)",
            name,
        )
    )
