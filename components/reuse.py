"""Component `reuse`: hand over what an earlier run left."""

from kfp import dsl

from components.images import component


@component
def reuse(stage: str, root: str, digest: str, out: dsl.Output[dsl.Artifact]) -> None:
    """Hand over a stage's finished output of an earlier run.

    Args:
        stage: Name of the stage.
        root: Folder or s3:// prefix of that run.
        digest: sha256 of `ROOT/STAGE/record.json`, checked unless empty.

    Returns:
        out: Reference to `ROOT/STAGE`.
    """
    from mobileclip.kubeflow import artifacts as io

    io.hand_over_earlier(stage, root, digest, out)
