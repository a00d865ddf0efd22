"""Component `distill`: train the student."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def distill(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train a student, and on request its plain-CLIP control, on a reinforced dataset.

    Args:
        config: Section `distill` of params.yaml, with every key.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/distill`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the calibrated dataset.

    Returns:
        out: Reference to the student, its control and the learning curves.
        metrics: The stage's numbers.
    """
    from mobileclip import kubeflow_io as io
    from mobileclip import kubeflow_run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("distill", config, where, data=io.read(data))
    io.hand_over(done, out, metrics)
