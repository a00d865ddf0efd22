"""Component `finish`: the exit handler of every pipeline."""

from kfp import dsl

from components.images import component


@component
def finish(status: dsl.PipelineTaskFinalStatus) -> None:
    """Close the MLflow run of the pipeline, and the runs of stages that were killed.

    Args:
        status: How the pipeline ended.
    """
    from mobileclip.kubeflow import run as stages

    stages.finish(status.state, status.error_message or "")
