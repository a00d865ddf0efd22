"""Component `promote`: register, gate, set aliases."""

from typing import Any

from kfp import dsl

from components.images import component


@component
def promote(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    student: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    programs: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Register the student with its evidence and let the gates decide on the champion alias.

    Args:
        config: Section `promote` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/promote`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        student: Reference to distill's output.
        evaluation: Reference to evaluate's output.
        programs: Reference to export's output.

    Returns:
        out: Reference to verdicts, lineage and model card.
        metrics: The stage's numbers.
        card: The model card.
        report: The page of the whole run: decision, champion, latency, programs, results, lineage.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    given, scores, exported = io.read(student), io.read(evaluation), io.read(programs)
    done = stages.run("promote", config, where, student=given, evaluation=scores, programs=exported)
    io.hand_over(done, out, metrics)
    io.show_file(done, "model_card.md", card)
    io.show_file(done, "release.html", report)
