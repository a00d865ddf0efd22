"""Component `caption`: write synthetic captions; `caption_group` is one share of that work."""

from typing import Any

from kfp import dsl

from components.images import TO_PODS, component


@component
def caption(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    captioner: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]
    parts: dsl.Input[list[dsl.Dataset]] = None,  # type: ignore[assignment]
) -> None:
    """Write M synthetic captions per image as a caption column, or put the groups' work together.

    Args:
        config: Section `caption` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/caption`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        data: Reference to the dataset to caption.
        captioner: Reference to the captioner, where the section asks for the trained one.
        parts: What the groups of a fan-out left; absent: the stage runs whole.

    Returns:
        out: Reference to the dataset with the caption column.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    count = io.count_parts(parts)
    done = stages.run("caption", config, where, merge=count, data=io.read(data), captioner=io.read(captioner))
    io.hand_over(done, out, metrics)


@component
def caption_group(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    group: str,
    data: dsl.Input[dsl.Dataset],
    part: dsl.Output[dsl.Dataset],
    captioner: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]
) -> None:
    """Write the captions of one group of shards; shards that are committed already are left alone.

    Args:
        config: Section `caption` of the params file.
        root: Folder or s3:// prefix of the run; all groups write to `ROOT/caption`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        group: `INDEX/COUNT`, such as `3/16`.
        data: Reference to the dataset to caption.
        captioner: Reference to the captioner, where the section asks for the trained one.

    Returns:
        part: Names the group.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    out = stages.run_group("caption", config, where, group=group, data=io.read(data), captioner=io.read(captioner))
    io.write_part(part, group, out)


@component(task_config_passthroughs=TO_PODS)
def caption_groups(
    config: dict[str, Any],
    root: str,
    code: str,
    generation: str,
    groups: list[str],
    pods: dict[str, Any],
    data: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    captioner: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]
    task: dsl.TaskConfig = None,
) -> None:
    """Write the captions of all groups in one Indexed Job: start it, follow it, put the work together.

    Args:
        config: Section `caption` of the params file.
        root: Folder or s3:// prefix of the run; this stage writes `ROOT/caption`.
        code: Digest of the library's code (part of the cache key), checked against the image's unless empty.
        generation: Generation of the root (part of the cache key), checked unless empty.
        groups: `0/N` to `N-1/N`, or `all/N`.
        pods: Image of the pods, how many run at once, and further starts of each.
        data: Reference to the dataset to caption.
        captioner: Reference to the captioner, where the section asks for the trained one.
        task: Resources, environment and volumes of the pods; Kubeflow fills it in.

    Returns:
        out: Reference to the dataset with the caption column.
        metrics: The stage's numbers.
    """
    from mobileclip.kubeflow import artifacts as io
    from mobileclip.kubeflow import fan_out
    from mobileclip.kubeflow import run as stages

    where = stages.Run(root, code, generation)
    inputs = {"data": io.read(data), "captioner": io.read(captioner)}
    done = fan_out.run("caption", config, where, groups=groups, pods=pods, task=task, **inputs)
    io.hand_over(done, out, metrics)
