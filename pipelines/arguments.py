"""The arguments of a run: where it works, and the digests that keep caches honest."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from kfp.dsl.base_component import BaseComponent

from mobileclip import storage
from mobileclip.errors import ConfigError
from mobileclip.kubeflow import run as kubeflow_run
from mobileclip.kubeflow import sweep
from mobileclip.lineage import code
from mobileclip.lineage import record as records
from pipelines.defaults import Sections
from pipelines.release import EARLIER
from pipelines.resources import FAN_OUT, MOUNT

MAX_BYTES = 10_000
"""What a Kubeflow API server takes as a run's parameters (its setting MAX_PARAMETER_BYTES)."""
MAX_INTEGER = 2**53 - 1
"""The largest whole number that a JSON double holds with all before it."""
_MAX_LOOP = 400  # names of more groups do not fit a run's parameters
_MAX_JOB = 10_000


def groups(count: int, *, one_job: bool = False) -> list[str]:
    """Names of `count` shares of work: `0/N` to `N-1/N`, for one job of Kubernetes `all/N`.

    Raises:
        ConfigError: There are none or too many.
    """
    most = _MAX_JOB if one_job else _MAX_LOOP
    if not 1 <= count <= most:
        raise ConfigError(f"groups: got {count}, want 1 to {most}; 10 to 100 are enough for any number of shards.")
    return [f"all/{count}"] if one_job else [f"{index}/{count}" for index in range(count)]


def build(
    pipeline: BaseComponent,
    sections: Sections,
    *,
    root: str,
    num_groups: int,
    students: Mapping[str, Any] | None = None,
    **external: str,
) -> dict[str, Any]:
    """Arguments of a pipeline whose root and inputs are visible from here.

    Args:
        pipeline: The pipeline.
        sections: Its sections; they decide on the generation.
        root: Folder or `s3://` prefix of the run.
        num_groups: Shares of the work of stages that fan out.
        students: Variants of a sweep, by name.
        external: Inputs from outside the chain by name; empty = absent.

    Raises:
        ConfigError: An input is missing, or `num_groups` is out of range.
        DataError: An input, or an earlier run's stage, is not there.
    """
    check_numbers({**sections, "students": students or {}}, "")
    chosen = _choose(pipeline, root=root, num_groups=num_groups, variants=students, one_job=False, **external)
    for name, uri in external.items():
        if f"{name}_digest" in _names(pipeline) and uri:
            chosen[f"{name}_digest"] = records.input_digest(uri)
    chosen |= _earlier(pipeline, root)
    wanted = {**chosen, **{stage: sections[stage] for stage in sections if stage in _names(pipeline)}}
    return {**chosen, "generation": kubeflow_run.claim(_claimed(pipeline, root), wanted)}


def build_remote(
    pipeline: BaseComponent,
    sections: Sections,
    defaults: Sections,
    *,
    root: str,
    num_groups: int,
    digests: dict[str, str],
    students: Mapping[str, Any] | None = None,
    recurring: bool = False,
    **external: str,
) -> dict[str, Any]:
    """Arguments of a run on a cluster, whose inputs this machine need not see.

    Sections are sent where they differ from the package's own: a server takes 10 000 bytes of parameters.

    Args:
        pipeline: The pipeline.
        sections: Sections of the run.
        defaults: Sections the package was compiled with.
        root: `s3://` prefix, or a folder in the cluster's data volume.
        num_groups: Shares of the work of stages that fan out.
        digests: Digests of external inputs by name, where they are known. Without them, or with a root that is not
            visible from here, nothing is served from Kubeflow's cache: the records below the root decide.
        students: Variants of a sweep, by name.
        recurring: Whether the same arguments start many runs: the root is not claimed for any of them, and `generation`
            stays empty (the package of a recurring run is compiled without Kubeflow's cache).
        external: Inputs from outside the chain by name; empty = absent.

    Raises:
        ConfigError: An input is missing, or the arguments are too large.
    """
    check_numbers({**sections, "students": students or {}}, "")
    check_shared(root, "root")
    for name, uri in external.items():
        if uri:
            check_shared(uri, name)
    chosen = _choose(
        pipeline, root=root, num_groups=num_groups, variants=students, one_job=FAN_OUT == "Job", **external
    )
    chosen |= {f"{name}_digest": digest for name, digest in digests.items() if digest}
    names = _names(pipeline)
    chosen |= {stage: section for stage, section in sections.items() if stage in names and section != defaults[stage]}
    visible = storage.is_s3(root) and not recurring
    if visible:
        chosen |= _earlier(pipeline, root)
    known = visible and all(digests.get(name) for name, uri in external.items() if uri and f"{name}_digest" in names)
    wanted = {**chosen, **{stage: sections[stage] for stage in sections if stage in names}}
    nonce = "" if known else uuid.uuid4().hex
    if not recurring:
        place = _claimed(pipeline, root)
        chosen["generation"] = kubeflow_run.claim(place, {**wanted, "nonce": nonce}) if visible else nonce[:12]
    if size(chosen) > MAX_BYTES:
        raise ConfigError(f"params: the run's parameters are {size(chosen)} bytes, the server takes {MAX_BYTES}.")
    return chosen


def check_shared(uri: str, key: str) -> None:
    """Check that all pods of a run see what is meant.

    Raises:
        ConfigError: It is neither an object store nor below the data volume.
    """
    storage.check(uri, key)
    if not storage.is_s3(uri) and not f"{storage.join(uri)}/".startswith(f"{MOUNT}/"):
        raise ConfigError(
            f"{key}: got '{uri}', want s3://BUCKET/KEY or a folder below {MOUNT}; pods share no other one."
        )


def check_numbers(value: Any, key: str) -> None:
    """Check that whole numbers arrive as they are: Kubeflow sends parameters as JSON doubles.

    Args:
        value: Any JSON value.
        key: Its name.

    Raises:
        ConfigError: A number is beyond 2**53 - 1.
    """
    if isinstance(value, Mapping):
        for name, entry in value.items():
            check_numbers(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            check_numbers(entry, f"{key}[{index}]")
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError(f"{key}: got {value}, want at most {MAX_INTEGER} either way; Kubeflow would change it.")


def size(chosen: Mapping[str, Any]) -> int:
    """Bytes of a run's parameters as the server counts them: JSON without white space."""
    return len(json.dumps(chosen, separators=(",", ":")))


def _choose(
    pipeline: BaseComponent,
    *,
    root: str,
    num_groups: int,
    variants: Mapping[str, Any] | None,
    one_job: bool = False,
    **external: str,
) -> dict[str, Any]:
    students = [{"title": name, "place": storage.join(root, sweep.FOLDER, name)} for name in variants or {}]
    given: dict[str, Any] = {
        "root": root,
        "code": code.package_digest(),
        "groups": groups(num_groups, one_job=one_job),
        **external,
    }
    given |= {"variants": dict(variants or {}), "students": students}
    for name, uri in {"root": root, **external}.items():
        storage.check(uri, name)
    inputs = pipeline.component_spec.inputs or {}
    for name, spec in inputs.items():
        if not spec.optional and not given.get(name):
            wanted = "a file of students" if name in {"variants", "students"} else "a folder or URI"
            raise ConfigError(f"{'students' if name == 'variants' else name}: missing, want {wanted}.")
    return {name: value for name, value in given.items() if name in inputs and value}


def _claimed(pipeline: BaseComponent, root: str) -> str:
    """Where a run's generation is kept: a sweep leaves that of the run whose dataset it uses alone."""
    return storage.join(root, sweep.FOLDER) if "students" in _names(pipeline) else root


def _earlier(pipeline: BaseComponent, root: str) -> dict[str, str]:
    """Digests of what the pipeline takes over from an earlier run in the same root."""
    wanted = [stage for stage in EARLIER if f"{stage}_digest" in _names(pipeline)]
    return {f"{stage}_digest": records.input_digest(storage.join(root, stage)) for stage in wanted}


def _names(pipeline: BaseComponent) -> set[str]:
    return set(pipeline.component_spec.inputs or {})
