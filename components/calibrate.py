"""Component `calibrate`: tune teacher logit scales."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def calibrate(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Search the teachers' logit scales on stored embeddings.

    Args:
        config: Section `calibrate` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/calibrate`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the reinforced dataset.

    Returns:
        out: Reference to the dataset with calibrated scales.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("calibrate", config, where, data=io.read(data))
    io.hand_over(done, out, metrics)
