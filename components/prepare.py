"""Component `prepare`: images and captions to shards."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def prepare(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    source: str,
    source_digest: str,
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Turn a user's pictures and captions into checked webdataset shards with a manifest.

    Args:
        config: Section `prepare` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/prepare`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        source: Folder with a caption table, pictures with .txt files, or webdataset tars.
        source_digest: Digest of that folder (part of the cache key), checked unless empty.

    Returns:
        out: Reference to the prepared dataset: shards, manifest, quarantine list.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("prepare", config, where, source=source, digests={"source": source_digest})
    io.hand_over(done, out, metrics)
