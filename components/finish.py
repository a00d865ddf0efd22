"""Component `finish`: the exit handler of every pipeline."""

from kfp import dsl

from components.images import component


@component
def finish(root: str, stages: list[str], status: dsl.PipelineTaskFinalStatus, report: dsl.Output[dsl.Markdown]) -> None:
    """Close the MLflow run of the pipeline and the runs of stages that were killed, and tell what each stage did.

    Args:
        root: Folder or s3:// prefix of the run, where the stages left notes.
        stages: The pipeline's stages.
        status: How the pipeline ended.

    Returns:
        report: Per stage what happened, how long it took, and why it failed.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages_of

    text = stages_of.finish(status.state, status.error_message or "", root=root, stages=stages)
    io.show_text(text, report)
