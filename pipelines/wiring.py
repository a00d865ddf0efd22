"""From rows of the chain's table to tasks."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.finish import finish
from components.reuse import reuse
from mobileclip.chain import Step
from pipelines import resources

FAN_OUT = ("caption", "reinforce")
"""Stages whose work is shared out over groups of shards; `components/X.py` has `X_group` beside `X`."""

GROUPS = [f"{index}/16" for index in range(16)]
"""Default of the parameter `groups`: however many shards there are, a loop has some ten to a hundred iterations."""


def add_stages(
    rows: Iterable[Step], given: Mapping[str, Any], *, profile: str, earlier: Mapping[str, Any] | None = None
) -> None:
    """Add one task per row, and a loop over groups before it where the stage fans out.

    Args:
        rows: Stages, each after those it reads.
        given: The pipeline's parameters by name; a stage's section has the stage's name.
        profile: Column of the resource table.
        earlier: Outputs of stages that are not among the rows, by stage.
    """
    outputs = dict(earlier or {})
    for row in rows:
        outputs[row.stage] = _add_stage(row, given, outputs, profile)


def reuse_stages(stages: Iterable[str], given: Mapping[str, Any], *, profile: str) -> dict[str, Any]:
    """Add one task per stage that hands over what an earlier run left in the same root; outputs by stage."""
    outputs = {}
    for stage in stages:
        task = reuse(stage=stage, root=given["root"], digest=given[f"{stage}_digest"])
        task.set_display_name(f"{stage} of an earlier run").set_caching_options(False)
        outputs[stage] = resources.apply(task, "reuse", profile).outputs["out"]
    return outputs


def finishing(profile: str, root: Any, stages: Iterable[str]) -> dsl.ExitHandler:
    """The exit handler around all tasks: however the pipeline ends, it closes the MLflow run and tells what happened.

    Args:
        profile: Column of the resource table.
        root: The pipeline's parameter.
        stages: Its stages.
    """
    task = resources.apply(finish(root=root, stages=list(stages)).set_caching_options(False), "finish", profile)
    return dsl.ExitHandler(task, name="chain")


def _add_stage(row: Step, given: Mapping[str, Any], outputs: Mapping[str, Any], profile: str) -> Any:
    nodes = resources.nodes(row.stage, profile)
    pods = resources.pods(row.stage, profile) if row.stage in FAN_OUT else {}
    component = _load(row.stage, f"{row.stage}_nodes" if nodes else f"{row.stage}_groups" if pods else row.stage)
    arguments: dict[str, Any] = {"config": given[row.stage], **({"nodes": nodes} if nodes else {})}
    arguments |= {name: outputs[stage] for name, stage in row.inputs.items()}
    arguments |= {name: given[name] for name in ("root", "code", "generation")}
    arguments |= {name: given[name] for external in row.external for name in (external, f"{external}_digest")}
    if pods:
        arguments |= {"groups": given["groups"], "pods": pods}
    elif row.stage in FAN_OUT:
        arguments["parts"] = _add_groups(row.stage, arguments, given, profile)
    task = component(**arguments).set_display_name(row.stage)
    return resources.apply(task, row.stage, profile).outputs["out"]


def _add_groups(stage: str, arguments: Mapping[str, Any], given: Mapping[str, Any], profile: str) -> dsl.Collected:
    component = _load(stage, f"{stage}_group")
    with dsl.ParallelFor(given["groups"], name=f"{stage}-groups", parallelism=resources.PARALLEL) as group:
        task = component(**arguments, group=group)
        resources.apply(task, stage, profile)
    return dsl.Collected(task.outputs["part"])


def _load(stage: str, name: str) -> BaseComponent:
    return getattr(importlib.import_module(f"components.{stage}"), name)
