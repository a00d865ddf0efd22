"""Component `evaluate`: score student against control."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def evaluate(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    student: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Score student and control on pictures neither has seen, with intervals and a report.

    Args:
        config: Section `evaluate` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/evaluate`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the calibrated dataset.
        student: Reference to distill's output.

    Returns:
        out: Reference to results, samples, figures and report.
        metrics: The stage's numbers.
        confusion: Confusion matrix of the student's first zero-shot task with up to 60 classes.
        report: The self-contained report.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("evaluate", config, where, data=io.read(data), student=io.read(student))
    io.hand_over(done, out, metrics)
    io.show_confusion(done, confusion)
    io.show_file(done, "report.html", report)
