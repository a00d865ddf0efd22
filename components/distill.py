"""Component `distill`: train the student; `distill_nodes` on several nodes, `distill_variant` one of a sweep."""

from typing import Any

from kfp import dsl

from components.images import TO_PODS, component


@component
def distill(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    teachers: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]
) -> None:
    """Train a student, and on request its plain-CLIP control, on a reinforced dataset.

    Args:
        config: Section `distill` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/distill`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the calibrated dataset.
        teachers: Reference to the trained teachers, where some of them run in the step.

    Returns:
        out: Reference to the student, its control and the learning curves.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    done = stages.run("distill", config, where, data=io.read(data), teachers=io.read(teachers))
    io.hand_over(done, out, metrics)


@component(task_config_passthroughs=TO_PODS)
def distill_nodes(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    nodes: dict[str, Any],
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    teachers: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]
    task: dsl.TaskConfig = None,
) -> None:
    """Train a student, and on request its plain-CLIP control, on several nodes: start the job, follow it, hand over.

    Args:
        config: Section `distill` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/distill`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        nodes: Number of nodes, processes on each, image, and kind of the job.
        data: Reference to the calibrated dataset.
        teachers: Reference to the trained teachers, where some of them run in the step.
        task: Resources, environment and volumes of the nodes; Kubeflow fills it in.

    Returns:
        out: Reference to the student, its control and the learning curves.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import launch
    from mobileclip.kubeflow.run import Run

    where = Run(root, code, generation)
    inputs = {"data": io.read(data), "teachers": io.read(teachers)}
    done = launch.run("distill", config, where, nodes=launch.read_nodes(nodes), task=task, **inputs)
    io.hand_over(done, out, metrics)


@component
def distill_variant(
    config: dict[str, Any],
    variants: dict[str, Any],
    name: str,
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train one student of a sweep.

    Args:
        config: Section `distill` of the params file.
        variants: What differs from it, by name of the student.
        name: The student.
        root: Folder or s3:// prefix of this student; this stage writes `ROOT/distill`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the sweep's root (part of the cache key).
        data: Reference to the calibrated dataset.

    Returns:
        out: Reference to the student, its control and the learning curves.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages
    from mobileclip.kubeflow import sweep

    where = stages.Run(root, code, generation)
    done = stages.run("distill", sweep.variant(config, variants, name), where, data=io.read(data))
    io.hand_over(done, out, metrics)
