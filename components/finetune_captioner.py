"""Component `finetune_captioner`: pre-train and fine-tune CoCa."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def finetune_captioner(
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
    """Pre-train a CoCa captioner on the alt text and fine-tune it on better captions.

    Args:
        config: Section `finetune_captioner` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/finetune_captioner`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        towers: Folder with pretrained towers; empty where the captioner names none.
        towers_digest: Digest of that folder (part of the cache key), checked unless empty.
        data: Reference to the filtered dataset.

    Returns:
        out: Reference to the captioner's checkpoint.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    digests = {"towers": towers_digest}
    done = stages.run("finetune_captioner", config, where, data=io.read(data), towers=towers, digests=digests)
    io.hand_over(done, out, metrics)
