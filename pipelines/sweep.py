"""Pipeline `mobileclip-sweep`: several students of one reinforced dataset, scored, exported and compared."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.compare import compare
from components.distill import distill_variant
from components.evaluate import evaluate as evaluate_student
from components.export import export as export_student
from pipelines import resources
from pipelines.defaults import Sections
from pipelines.wiring import finishing, reuse_stages

EARLIER = ("prepare", "calibrate")
_PARALLEL = 8  # students at once


def build(sections: Sections, profile: str) -> BaseComponent:
    """The pipeline.

    Args:
        sections: Defaults of its parameters.
        profile: Column of the resource table.
    """

    @dsl.pipeline(name="mobileclip-sweep", description="Several students of one reinforced dataset, compared.")
    def sweep(
        root: str,
        variants: dict[str, Any],
        students: list[dict[str, str]],
        prepare_digest: str = "",
        calibrate_digest: str = "",
        code: str = "",
        generation: str = "",
        distill: dict[str, Any] = sections["distill"],
        evaluate: dict[str, Any] = sections["evaluate"],
        export: dict[str, Any] = sections["export"],
    ) -> None:
        """Distill, evaluate and export every student, and compare them.

        Args:
            root: Folder or s3:// prefix of the run that made the dataset; student X writes below `ROOT/sweep/X`.
            variants: What differs from the section `distill`, by name of the student.
            students: `title` of each student and its `place`, the folder or prefix that it writes below.
            prepare_digest: sha256 of `ROOT/prepare/record.json`; another one is refused.
            calibrate_digest: The same of calibrate.
            code: Digest of the library's code; an image with another one is refused.
            generation: Generation of the root, renewed when something else is submitted for it.
            distill: Section of params.yaml, like all that follow.
            evaluate: Section.
            export: Section.
        """
        given = dict(locals())
        with finishing(profile, root, ()):
            earlier = reuse_stages(EARLIER, given, profile=profile)
            with dsl.ParallelFor(students, name="students", parallelism=_PARALLEL) as student:
                # Each item brings its whole place: kfp 2.17 loses track of a loop's item within a longer text.
                place = {"root": student.place, "code": code, "generation": generation}
                data = earlier["calibrate"]
                trained = distill_variant(config=distill, variants=variants, name=student.title, data=data, **place)
                model = _with(trained, "distill", profile).outputs["out"]
                scored = evaluate_student(config=evaluate, data=data, student=model, **place)
                written = export_student(config=export, data=earlier["prepare"], student=model, **place)
                _with(scored, "evaluate", profile)
                _with(written, "export", profile)
            side_by_side = compare(
                root=root,
                evaluations=dsl.Collected(scored.outputs["out"]),
                programs=dsl.Collected(written.outputs["out"]),
            )
            resources.apply(side_by_side, "compare", profile)

    return sweep


def _with(task: dsl.PipelineTask, stage: str, profile: str) -> dsl.PipelineTask:
    return resources.apply(task.set_display_name(stage), stage, profile)
