"""How components run stages: through the door, into the run's root, and not at all where the result is there already.

Two caches work together. Kubeflow's serves an unchanged re-run of a submission (a resume) without starting anything;
its key holds the image, the section, the digests of code and external inputs, and the root's *generation*. Beyond
that the record beside the outputs decides: a component whose folder is current for this code, section and these
inputs only hands it over. The generation keeps the first from serving what is no longer there: it is renewed whenever
something else is submitted for the same root, and with the root it is gone.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobileclip import entry, storage
from mobileclip.chain import step
from mobileclip.config import Section, check_section
from mobileclip.errors import ConfigError, DataError, IntegrityError, MobileClipError
from mobileclip.kubeflow import journal
from mobileclip.kubeflow.journal import TakenOverError, noted
from mobileclip.lineage import code
from mobileclip.lineage import record as records

logger = logging.getLogger(__name__)

GENERATION = "generation.json"
WORKFLOW = "MOBILECLIP_WORKFLOW"
"""Environment variable with the name of the Argo Workflow that this pod belongs to."""
_MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "COMPLETE": "FINISHED", "SKIPPED": "FINISHED", "CANCELLED": "KILLED"}


@dataclass(frozen=True)
class Run:
    """What every component of one pipeline run is told.

    Attributes:
        root: Folder or `s3://` prefix; stage X writes `ROOT/X`.
        code: Expected `code.package_digest()`; empty = not checked.
        generation: Expected generation of the root; empty = not checked.
    """

    root: str
    code: str = ""
    generation: str = ""

    def check(self) -> None:
        """Check that this process is the one the run was submitted for.

        Raises:
            ConfigError: The library is another one.
            TakenOverError: Another run has taken the root over.
        """
        if self.code and self.code != code.package_digest():
            raise ConfigError(
                f"code: the run was submitted for library code {self.code[:12]}, this image holds "
                f"{code.package_digest()[:12]}; build the image from the revision that submits."
            )
        found = read_generation(self.root)
        if self.generation and found and found["id"] != self.generation:
            raise TakenOverError(
                f"root: '{self.root}' was taken over by a later submission ({found['id']}, this run is "
                f"{self.generation}); give runs that go on side by side roots of their own."
            )


@dataclass(frozen=True)
class Done:
    """A stage that has run.

    Attributes:
        stage: Its name.
        uri: Where its outputs lie.
        metrics: Its numbers.
    """

    stage: str
    uri: str
    metrics: dict[str, float]


def run(
    stage: str,
    config: Mapping[str, Any],
    where: Run,
    *,
    digests: Mapping[str, str] | None = None,
    merge: int = 0,
    **inputs: str,
) -> Done:
    """Run a stage into `ROOT/STAGE`, unless that folder already holds the result for this code, config and inputs.

    Args:
        stage: Name of the stage.
        config: Its whole section.
        where: The pipeline run.
        digests: Expected digests of external inputs by name; an empty one is not checked.
        merge: Number of groups whose work is put together; 0 or 1 = the stage runs whole.
        inputs: Input URIs by name; empty = absent.

    Raises:
        ConfigError: Section or code are not what the run was submitted with.
        IntegrityError: An external input changed since the run was submitted.
    """
    with noted(where.root, stage) as said:
        out, section, given = _resolve(stage, config, where, inputs)
        if records.is_current(stage, section, out, given):
            _say_current(stage, out, said)
        else:
            options = {"merge": True, "num_groups": merge} if merge > 1 else None
            entry.run_stage(stage, section, out=out, options=options, **given)
        record = json.loads(storage.read_bytes(storage.join(out, records.RECORD)))
        _check_digests(stage, record["inputs"], digests or {})
        metrics = json.loads(storage.read_bytes(storage.join(out, "metrics.json")))
        return Done(stage, out, metrics)


def is_done(stage: str, config: Mapping[str, Any], where: Run, **inputs: str) -> bool:
    """Whether `ROOT/STAGE` holds the result for this code, config and these inputs.

    Raises:
        ConfigError: Section or code are not what the run was submitted with.
    """
    out, section, given = _resolve(stage, config, where, inputs)
    return records.is_current(stage, section, out, given)


def take_part(stage: str, config: Mapping[str, Any], where: Run, **inputs: str) -> None:
    """Be one of several processes of a stage; `run` hands its result over once all have ended.

    Raises:
        ConfigError: Section or code are not what the run was submitted with.
    """
    out, section, given = _resolve(stage, config, where, inputs)
    if records.is_current(stage, section, out, given):
        logger.info("%s: '%s' is current", stage, out)
    else:
        keywords: Any = given  # the stage's own input names, which mypy could take for `options`
        entry.run_stage(stage, section, out=out, **keywords)


def run_group(stage: str, config: Mapping[str, Any], where: Run, *, group: str, **inputs: str) -> str:
    """Run one group of a fan-out; what it or another process has committed before is not computed again.

    Args:
        stage: A stage that fans out.
        config: Its whole section.
        where: The pipeline run.
        group: `INDEX/COUNT`, such as `3/16`.
        inputs: Input URIs by name; empty = absent.

    Returns:
        The stage's output folder.
    """
    with noted(where.root, stage, group) as said:
        index, count = parse_group(group)
        out, section, given = _resolve(stage, config, where, inputs)
        if records.is_current(stage, section, out, given):
            _say_current(stage, out, said)
            return out
        options = {"group": index, "num_groups": count} if count > 1 else None
        entry.run_stage(stage, section, out=out, options=options, **given)
        return out


def parse_group(group: str) -> tuple[int, int]:
    """Index and count of `INDEX/COUNT`.

    Raises:
        ConfigError: It is no such pair.
    """
    index, _, count = group.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"groups: got '{group}', want INDEX/COUNT with an index from 0 to COUNT - 1.")
    return int(index), int(count)


def count_groups(groups: Sequence[str]) -> int:
    """The number of groups, given each by name or as `all/N`.

    Raises:
        ConfigError: Some are missing, there twice, or of another count.
    """
    if len(groups) == 1 and groups[0].startswith("all/"):
        return parse_group("0" + groups[0].removeprefix("all"))[1]
    return check_groups(groups)


def check_groups(groups: Sequence[str]) -> int:
    """The number of groups, where each is there once.

    Raises:
        ConfigError: Some are missing, there twice, or of another count.
    """
    pairs = sorted(parse_group(group) for group in groups)
    if not pairs or pairs != [(index, len(pairs)) for index in range(len(pairs))]:
        raise ConfigError(f"groups: got {list(groups)}, want each of '0/N' to 'N-1/N' once.")
    return len(pairs)


def claim(root: str, arguments: Mapping[str, Any]) -> str:
    """The generation of `root` for a submission: what is there if it is for the same arguments, else a new one.

    Args:
        root: Folder or `s3://` prefix of the run.
        arguments: Everything that is submitted.
    """
    wanted = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
    found = read_generation(root)
    if found and found["arguments"] == wanted:
        return found["id"]
    renewed = {"id": uuid.uuid4().hex[:12], "arguments": wanted}
    storage.write_bytes(storage.join(root, GENERATION), (json.dumps(renewed, indent=2, sort_keys=True) + "\n").encode())
    return renewed["id"]


def read_generation(root: str) -> dict[str, str]:
    """What `ROOT/generation.json` says; empty where there is none."""
    try:
        return dict(json.loads(storage.read_bytes(storage.join(root, GENERATION))))
    except DataError:
        return {}


def finish(state: str, message: str, *, root: str = "", stages: Sequence[str] = ()) -> str:
    """Close the pipeline's MLflow run, those of killed stages with it, and tell what each stage did.

    Args:
        state: Kubeflow's final state, such as `SUCCEEDED`.
        message: Its error message.
        root: Folder or `s3://` prefix of the run, where stages left notes; empty = none.
        stages: The pipeline's stages.

    Returns:
        The report, as Markdown.
    """
    from mobileclip.tracking import runs as tracking

    status = _MLFLOW_STATUS.get(state, "FAILED")
    if status == "FAILED" and _is_cancelled():  # Kubeflow ends a run that a person terminates as failed
        status = "KILLED"
    killed = tracking.close_parent(status=status)
    logger.info("pipeline %s: %s; %d stage runs ended as killed", state.lower(), message or "no error", len(killed))
    if not root:
        return ""
    outcome = {"FINISHED": "succeeded", "KILLED": "canceled"}.get(status, "failed")
    report = journal.gather(root, journal.run_id(), stages, state=outcome, message=message)
    journal.write_report(report)
    return journal.render(report)


def _is_cancelled() -> bool:
    """Whether a person has terminated the pipeline run; False where the cluster does not say."""
    workflow = os.environ.get(WORKFLOW, "")
    if not workflow:
        return False
    try:
        from mobileclip.kubeflow import cluster

        return cluster.is_terminated(cluster.connect(workflow=workflow))
    except (ModuleNotFoundError, MobileClipError) as error:
        logger.info("whether the run was cancelled is not known: %s", error)
        return False


def _say_current(stage: str, out: str, said: list[str]) -> None:
    logger.info("%s: '%s' is current", stage, out)
    said.append("current")


def _resolve(
    stage: str, config: Mapping[str, Any], where: Run, inputs: Mapping[str, str]
) -> tuple[str, Section, dict[str, str]]:
    where.check()
    given = {name: uri for name, uri in inputs.items() if uri}
    return storage.join(where.root, stage), check_section(stage, config), given


def _check_digests(stage: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name, digest in wanted.items():
        if digest and name in step(stage).names and found.get(name) != digest:
            raise IntegrityError(
                f"{stage}: input '{name}' has digest {found.get(name, 'none')[:12]}, the run was submitted for "
                f"{digest[:12]}; it changed since."
            )
