"""Component `export`: write programs with proof."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def export(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    student: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Write the student's towers for the phone runtimes and prove each in its runtime.

    Args:
        config: Section `export` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/export`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the prepared dataset, whose samples prove the programs.
        student: Reference to distill's output.

    Returns:
        out: Reference to programs, contract and proof.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("export", config, where, data=io.read(data), student=io.read(student))
    io.hand_over(done, out, metrics)
