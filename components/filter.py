"""Component `filter`: keep the best pairs."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def filter(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    teachers: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]
) -> None:
    """Score image-text pairs with a CLIP model and keep the best, as a selection column.

    Args:
        config: Section `filter` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/filter`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the prepared dataset.
        teachers: Reference to the teachers, where the section names one of them.

    Returns:
        out: Reference to the dataset with scores and selection.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("filter", config, where, data=io.read(data), teachers=io.read(teachers))
    io.hand_over(done, out, metrics)
