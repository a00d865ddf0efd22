"""Component `train_teacher`: train in-domain CLIP teachers."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def train_teacher(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    towers: str,
    towers_digest: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train in-domain CLIP teachers, from scratch or by locked tuning of pretrained towers.

    Args:
        config: Section `train_teacher` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/train_teacher`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        towers: Folder with pretrained towers; empty where no teacher names some.
        towers_digest: Digest of that folder (part of the cache key), checked unless empty.
        data: Reference to the prepared dataset.

    Returns:
        out: Reference to the teachers, one checkpoint folder each.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    digests = {"towers": towers_digest}
    done = stages.run("train_teacher", config, where, data=io.read(data), towers=towers, digests=digests)
    io.hand_over(done, out, metrics)
