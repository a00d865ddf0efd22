"""The state of every stage below a root, and why: what a run would do, told before it does it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mobileclip import storage
from mobileclip.chain import CHAIN, Step
from mobileclip.config import Params
from mobileclip.errors import MobileClipError
from mobileclip.lineage import code
from mobileclip.lineage.provenance import flatten
from mobileclip.lineage.record import RECORD, input_digest, is_current

RUN = "run.json"
"""What a run of the chain leaves in its root, so that later commands need the root alone."""
_SHOWN = 4

Kind = Literal["current", "changed", "waits", "missing"]


@dataclass(frozen=True)
class State:
    """A stage's state.

    Attributes:
        stage: Its name.
        kind: `current`: nothing to do. `changed`: its record no longer holds. `waits`: an earlier stage runs first.
            `missing`: it has not run.
        why: One reason each: files of code, keys with old and new value, inputs, damaged files.
    """

    stage: str
    kind: Kind
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The state in a few words."""
        return f"runs after {self.why[0]}" if self.kind == "waits" else self.kind


def chain_inputs(row: Step, root: str, *, source: str, towers: str = "") -> dict[str, str]:
    """A stage's inputs below a root by name; optional ones that are not there are left out.

    Args:
        row: The stage.
        root: Folder or `s3://` prefix; stage X writes `ROOT/X`.
        source: Raw data.
        towers: Pretrained towers; empty = none.
    """
    inputs = {name: storage.join(root, stage) for name, stage in row.inputs.items()}
    inputs |= {name: uri for name, uri in {"source": source, "towers": towers}.items() if name in row.external}
    return {name: uri for name, uri in inputs.items() if name not in row.optional or _is_given(row, name, uri)}


def _is_given(row: Step, name: str, uri: str) -> bool:
    """Whether an optional input is given; that of an earlier stage counts once the stage has run in this root."""
    return bool(uri) and (name not in row.inputs or storage.exists(storage.join(uri, RECORD)))


def chain_states(params: Params, root: str, *, source: str, towers: str = "") -> list[State]:
    """The state of every stage, in the order of the chain.

    Args:
        params: What a run would be given.
        root: Folder or `s3://` prefix.
        source: Raw data.
        towers: Pretrained towers; empty = none.
    """
    states: list[State] = []
    for row in CHAIN:
        inputs = chain_inputs(row, root, source=source, towers=towers)
        before = [s.stage for s in states if s.kind != "current" and s.stage in row.inputs.values()]
        waits_for = [stage for stage in before if stage in {row.inputs.get(name) for name in inputs}]
        state = stage_state(row.stage, params, storage.join(root, row.stage), inputs)
        if waits_for and state.kind != "missing":
            state = State(row.stage, "waits", (waits_for[0],))
        states.append(state)
    return states


def stage_state(stage: str, params: Params, out: str, inputs: Mapping[str, str]) -> State:
    """The state of one stage, given what lies in its inputs now."""
    if not storage.exists(storage.join(out, RECORD)):
        return State(stage, "missing")
    section = getattr(params, stage)
    if is_current(stage, section, out, inputs):
        return State(stage, "current")
    return State(stage, "changed", tuple(_reasons(stage, section.model_dump(mode="json"), out, inputs)))


def _reasons(stage: str, section: Mapping[str, Any], out: str, inputs: Mapping[str, str]) -> list[str]:
    record = _read(storage.join(out, RECORD))
    if not isinstance(record, dict):
        return [f"{RECORD} is damaged"]
    files, now = record.get("code_files"), code.code_files(stage)
    reasons = _differing("code", files, now) if isinstance(files, dict) else []
    if not reasons and record.get("code") != code.code_digest(stage):
        reasons = ["code of another version"]
    old = _read(storage.join(out, "config.json"))
    reasons += _keys(stage, old, section) if isinstance(old, dict) else ["config.json is missing"]
    recorded = record.get("inputs", {})
    for name in sorted({*recorded, *inputs}):
        if name not in inputs:
            reasons.append(f"input '{name}' is no longer given")
        elif name not in recorded:
            reasons.append(f"input '{name}' is new")
        elif _digest(inputs[name]) != recorded[name]:
            reasons.append(f"input '{name}' has other content")
    return reasons or _damaged(record, out)


def _differing(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what}: {', '.join(names[:_SHOWN])}{more}"] if names else []


def _keys(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = flatten(old, stage), flatten(new, stage)
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    shown = [f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names[:_SHOWN]]
    return [*shown, f"{len(names) - _SHOWN} more keys"] if len(names) > _SHOWN else shown


def _damaged(record: Mapping[str, Any], out: str) -> list[str]:
    for name, sha256 in record.get("files", {}).items():
        try:
            storage.read_bytes(storage.join(out, name), sha256=sha256)
        except MobileClipError:
            return [f"{name} is damaged or missing"]
    return ["its record is of another stage or form"]


def _digest(uri: str) -> str:
    try:
        return input_digest(uri)
    except MobileClipError:
        return "missing"


def _read(uri: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except (MobileClipError, ValueError):
        return None


def write_run(root: str, params: Params, *, source: str, towers: str) -> None:
    """Leave in a root what the chain was run with."""
    content = {"params": params.model_dump(mode="json"), "source": source, "towers": towers}
    storage.write_bytes(storage.join(root, RUN), (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_run(root: str) -> tuple[Params, str, str] | None:
    """What a root was last run with (params, source, towers); nothing where no run left it."""
    found = _read(storage.join(root, RUN))
    if not isinstance(found, dict):
        return None
    return Params.model_validate(found["params"]), str(found["source"]), str(found["towers"])
