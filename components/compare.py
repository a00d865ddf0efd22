"""Component `compare`: the Pareto report of a sweep."""

from kfp import dsl

from components.images import component


@component
def compare(
    root: str,
    evaluations: dsl.Input[list[dsl.Artifact]],
    programs: dsl.Input[list[dsl.Model]],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Show the students of a sweep side by side: score against size, and which no other one beats.

    Args:
        root: Folder or s3:// prefix of the run; the report is written to `ROOT/sweep`.
        evaluations: References to evaluate's outputs, one per student.
        programs: References to export's outputs, one per student.

    Returns:
        metrics: Score and size of each student.
        report: The self-contained report.
    """
    from mobileclip.kubeflow import artifacts as io

    io.show_sweep(root, evaluations, programs, metrics, report)
