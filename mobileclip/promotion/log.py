"""Who is champion, and why: an append-only log of promotions that decides, and aliases that follow it.

MLflow's aliases know no compare-and-set and no history. So each promotion, refusal and rollback of model NAME is an
event: one version of the registered model `NAME.promotions`, whose numbers the store gives out one by one. An event
that changes the champion names the change it was decided on (`head`); of several that name the same one, the first
in the log is in force and the others are void. Everyone who reads the log sees the same winner, whoever crashes.
Why this holds: docs/decisions/0010-promotion-log.md.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mobileclip.errors import DataError, IntegrityError
from mobileclip.lineage import provenance
from mobileclip.promotion import registry as registries
from mobileclip.promotion.registry import CHAMPION, Registry

logger = logging.getLogger(__name__)

LEDGER = ".promotions"
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"
IN_FORCE, VOID, NOTED = "in force", "void", "noted"
_EVENT_TAG = "event"
_ROUNDS = 20


@dataclass(frozen=True)
class Entry:
    """One event of the log.

    Attributes:
        sequence: Its number, given by the store.
        event: What happened.
        outcome: `in force` (changed the champion), `void` (lost to an earlier change), `noted` (a refusal).
    """

    sequence: int
    event: dict[str, Any]
    outcome: str


@dataclass(frozen=True)
class Log:
    """The whole history, read at one moment.

    Attributes:
        entries: Events in order.
        head: Sequence of the last change of the champion; 0 before the first.
        champions: Versions that became champion and were not rolled back, the present one last.
        length: Sequence of the last event.
        sha256: Running digest over all events.
        problems: Sentences that tell what does not match: a changed or deleted event.
    """

    entries: list[Entry] = field(default_factory=list)
    head: int = 0
    champions: list[int] = field(default_factory=list)
    length: int = 0
    sha256: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def champion(self) -> int:
        """The present champion's version; 0 where there is none."""
        return self.champions[-1] if self.champions else 0


def read(registry: Registry) -> Log:
    """Read and check the log of a registered model; empty where nothing happened yet."""
    texts = {v.number: v.tags.get(_EVENT_TAG, "") for v in _ledger(registry).versions()}
    length, sha256 = max(texts, default=0), ""
    problems = [f"event {number} is missing" for number in range(1, length + 1) if number not in texts]
    digests, parsed = {0: ""}, list[tuple[int, dict[str, Any]]]()
    for number, text in texts.items():
        digests[number] = sha256 = hashlib.sha256((sha256 + text).encode()).hexdigest()
        try:
            parsed.append((number, json.loads(text)))
        except ValueError:
            problems.append(f"event {number} is not readable")
    for number, event in parsed:
        seen = event["log"]
        if digests.get(seen["length"]) != seen["sha256"]:
            problems.append(f"an event before {number} was changed after event {number} was written")
    return _fold(parsed, length=length, sha256=sha256, problems=problems)


def append(registry: Registry, base: Log, event: Mapping[str, Any]) -> tuple[Entry, Log]:
    """Write an event that was decided on `base`; tells whether it is in force.

    Args:
        registry: The registered model.
        base: The log as it was read **before** the decision.
        event: `kind`, `version` and whatever the history should show.

    Returns:
        The event as it stands in the log, and the log as it is now.
    """
    nonce = uuid.uuid4().hex  # finds our event again where the store's answer to the write got lost
    whole: dict[str, Any] = {
        **event,
        "previous": base.champion,
        "head": base.head,
        "log": {"length": base.length, "sha256": base.sha256},
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": provenance.actor(),
        "nonce": nonce,
    }
    ledger = _ledger(registry)
    ledger.ensure(f"Promotion history of {registry.name}: one version per event; never edit or delete one.")
    tags: dict[str, str] = {name: str(whole[name]) for name in ("kind", "version", "by", "why") if name in whole}
    tags[_EVENT_TAG] = json.dumps(whole, sort_keys=True)
    ledger.create(f"models:/{registry.name}/{whole['version']}", tags)
    log = read(registry)
    for entry in log.entries:
        if entry.event["nonce"] == nonce:
            return entry, log
    raise IntegrityError(f"registry: the event just written to '{ledger.name}' is not there, someone deleted it.")


def settle(registry: Registry) -> int:
    """Point `champion` where the log says; returns that version.

    After the last write of the alias its writer reads the log once more, so the alias ends where the log ends however
    many promotions cross each other. A crash in between leaves it behind until the next call.
    """
    for _ in range(_ROUNDS):
        log = read(registry)
        if not log.head:
            return registry.alias(CHAMPION)
        shown = registry.alias(CHAMPION)
        if shown == log.champion:
            return shown
        logger.info("registry: champion of '%s' is version %d, was %d.", registry.name, log.champion, shown)
        registry.point(CHAMPION, log.champion)
    raise IntegrityError(f"registry: alias '{CHAMPION}' of '{registry.name}' is changed by others all the time.")


def rollback(name: str, *, why: str) -> dict[str, Any]:
    """Make the champion before the present one champion again.

    Args:
        name: Registered model.
        why: Reason, kept in the history.

    Returns:
        The event as a row of the history.

    Raises:
        DataError: There is no earlier champion, `why` is empty, or another change came in between.
    """
    if not why.strip():
        raise DataError("rollback: got no reason, want one sentence for the history.")
    registry = registries.connect(name)
    log = read(registry)
    if len(log.champions) < 2:
        raise DataError(
            f"rollback: '{name}' has had {len(log.champions)} champion(s), want an earlier one to return to."
        )
    target = log.champions[-2]
    entry, _ = append(registry, log, {"kind": ROLLED_BACK, "version": target, "why": why})
    settle(registry)
    if entry.outcome != IN_FORCE:
        raise DataError(f"rollback: another change of '{name}' came in between, look at its history and try again.")
    return row(entry)


def history(name: str) -> list[dict[str, Any]]:
    """All promotions, refusals and rollbacks, oldest first: who, what, when, why, on what evidence.

    Raises:
        DataError: Nothing was ever promoted under this name.
    """
    log = read(registries.connect(name))
    if not log.entries:
        raise DataError(f"history: '{name}' has no promotion history, want the name of a registered student.")
    for problem in log.problems:
        logger.warning("registry: history of '%s' is damaged: %s.", name, problem)
    return [row(entry) for entry in log.entries]


def explain(name: str, reference: int | str = CHAMPION) -> dict[str, list[dict[str, Any]]]:
    """Why a version is, or is not, champion.

    Args:
        name: Registered model.
        reference: Version number or alias.

    Returns:
        `version` (what it is), `verdicts` (every gate), `events` (what happened to it).

    Raises:
        DataError: There is no such version.
    """
    registry = registries.connect(name)
    version = registry.version(reference)
    log = read(registry)
    aliases = sorted(alias for alias, number in registry.aliases().items() if number == version.number)
    about = {
        "version": version.number,
        "aliases": ", ".join(aliases),
        "champion by log": log.champion == version.number,
    }
    tags = {k: v for k, v in sorted(version.tags.items()) if k != "verdicts" and not k.startswith("gate.")}
    touching = [e for e in log.entries if version.number in {e.event["version"], e.event["previous"]}]
    return {
        "version": [{"what": k, "value": v} for k, v in {**about, **tags, "run": version.run_id}.items()],
        "verdicts": json.loads(version.tags.get("verdicts", "[]")),
        "events": [row(entry) for entry in touching],
    }


def row(entry: Entry) -> dict[str, Any]:
    """An event as a flat row."""
    event = entry.event
    return {
        "event": entry.sequence,
        "at": event["at"],
        "by": event["by"],
        "kind": event["kind"],
        "outcome": entry.outcome,
        "version": event["version"],
        "previous": event["previous"],
        "why": event.get("why", ""),
        "evidence": event.get("evidence", ""),
    }


def _fold(parsed: list[tuple[int, dict[str, Any]]], *, length: int, sha256: str, problems: list[str]) -> Log:
    """Play the events in order; the first one that names the present head is the next head."""
    head, champions, entries = 0, list[int](), list[Entry]()
    for number, event in parsed:
        if event["kind"] == REFUSED:
            outcome = NOTED
        elif event["head"] != head:
            outcome = VOID
        else:
            outcome, head = IN_FORCE, number
            if event["kind"] == ROLLED_BACK and event["version"] in champions:
                champions = champions[: champions.index(event["version"]) + 1]
            else:
                champions = [*champions, event["version"]]
        entries.append(Entry(number, event, outcome))
    return Log(entries, head, champions, length, sha256, problems)


def _ledger(registry: Registry) -> Registry:
    return Registry(registry.client, registry.name + LEDGER)
