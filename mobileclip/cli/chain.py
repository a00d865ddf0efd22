"""Commands of the chain as a whole: run it, say what a run would do, complete its params."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from mobileclip import storage
from mobileclip.chain import CHAIN, Step
from mobileclip.cli import tables
from mobileclip.cli.options import FILE, json_option, notes, params_option, place_options, recipe_option
from mobileclip.cli.stage import exit_code
from mobileclip.config import read_params
from mobileclip.errors import ConfigError
from mobileclip.lineage.leftovers import leftovers, sizes
from mobileclip.lineage.record import is_current
from mobileclip.lineage.state import chain_inputs, chain_states, read_run, write_run
from mobileclip.storage.lock import locked

_LOCK = ".run.lock"
_STAGES = click.Choice([row.stage for row in CHAIN])


@click.command()
@params_option
@recipe_option
@place_options
@click.option("--from", "first", type=_STAGES, default=CHAIN[0].stage, help="first stage")
@click.option("--to", "last", type=_STAGES, default=CHAIN[-1].stage, help="last stage")
@click.option("--force", is_flag=True, help="run stages that are current, too")
def run(
    params: Path, recipe: tuple[Path, ...], root: str, source: str, towers: str, first: str, last: str, force: bool
) -> int:
    """Run the chain from a first to a last stage, skipping what is current."""
    values = read_params(params, recipes=recipe)
    names = [row.stage for row in CHAIN]
    chosen = CHAIN[names.index(first) : names.index(last) + 1]
    if not chosen:
        raise ConfigError(f"run: --from {first} comes after --to {last}.")
    console = notes()

    def inputs(row: Step) -> dict[str, Any]:
        return chain_inputs(row, root, source=source, towers=towers)

    def current(row: Step) -> bool:
        out = storage.join(root, row.stage)
        return not force and is_current(row.stage, getattr(values, row.stage), out, inputs(row))

    if all(current(row) for row in chosen):
        console.print(f"all {len(chosen)} stages are current in {root}")
        return _summary(root, [row.stage for row in chosen])
    from mobileclip.entry import run_stage
    from mobileclip.preflight.check import check
    from mobileclip.preflight.facts import read_facts
    from mobileclip.preflight.problem import report
    from mobileclip.tracking import runs as tracking

    def look(data: str) -> None:
        """Refuse what cannot work, all of it at once; with the prepared data also what does not fit them."""
        facts = read_facts(data) if data else None
        stages = [row.stage for row in chosen]
        report(check(values, facts=facts, towers=towers, root=root, stages=stages))

    prepared = storage.join(root, CHAIN[0].stage)
    look("" if chosen[0] is CHAIN[0] and not current(CHAIN[0]) else _is_there(prepared))
    with _alone(root), tracking.parent_run(Path(root).name):
        write_run(root, values, source=source, towers=towers)
        for row in chosen:
            # Asked again at its turn: an earlier stage that ran may have changed this one's inputs.
            if current(row):
                console.print(f"[dim]{row.stage:<20}current[/dim]")
                continue
            start = time.perf_counter()
            run_stage(row.stage, getattr(values, row.stage), out=storage.join(root, row.stage), **inputs(row))
            console.print(f"{row.stage:<20}{time.perf_counter() - start:7.1f} s")
            if row is CHAIN[0]:
                look(prepared)
    return _summary(root, [row.stage for row in chosen])


def _is_there(data: str) -> str:
    """A dataset's folder where it has a manifest; else empty: a root may begin with a later stage's output."""
    return data if storage.exists(storage.join(data, "manifest.json")) else ""


@contextlib.contextmanager
def _alone(root: str) -> Iterator[None]:
    """Hold a local root, so that no second run of the chain writes there; wait for one that does."""

    def waiting(holder: str) -> None:
        notes().print(f"run: {holder} writes to '{root}', waiting for its end", markup=False, soft_wrap=True)

    with contextlib.nullcontext() if storage.is_s3(root) else locked(Path(root, _LOCK), waiting=waiting):
        yield


@click.command()
@click.argument("place", metavar="[ROOT]", default="")
@click.option("--params", type=FILE, default=None, help="params file; default: what the run in ROOT was given")
@recipe_option
@place_options
@json_option
def status(
    place: str, params: Path | None, recipe: tuple[Path, ...], root: str, source: str, towers: str, as_json: bool
) -> int:
    """Print each stage's state, and why a run would run it."""
    root = place or root
    left = read_run(root) if params is None else None
    if left is None:
        values = read_params(params or Path("params.yaml"), recipes=recipe)
    else:
        values, source, towers = left
    states = chain_states(values, root, source=source, towers=towers)
    taken = sizes(root)
    if as_json:
        rows = [{"stage": s.stage, "state": s.kind, "why": list(s.why), "bytes": taken.get(s.stage, 0)} for s in states]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    table = Table("stage", "state", "MB", "why", box=None)
    for state in states:
        why = "" if state.kind == "waits" else "\n".join(state.why)
        table.add_row(state.stage, str(state), f"{taken.get(state.stage, 0) / 1e6:,.1f}", escape(why))
    tables.show(table)
    return 0


@click.command()
@click.argument("root")
@click.option("--delete", is_flag=True, help="delete them; default: only list them")
@json_option
def gc(root: str, delete: bool, as_json: bool) -> int:
    """List what finished stages below ROOT no longer need: checkpoints, column files and shards that nothing names.

    Stages that are not finished keep everything, which a re-run goes on from.
    """
    found = leftovers(root)
    if delete:
        for item in found:
            storage.delete(storage.join(root, item.path))
    if as_json:
        sys.stdout.write(json.dumps([asdict(item) for item in found], indent=2) + "\n")
        return 0
    table = Table("file", "MB", "what it is", box=None)
    for item in found:
        table.add_row(escape(item.path), f"{item.bytes / 1e6:,.1f}", item.why)
    if found:
        tables.show(table)
    total = sum(item.bytes for item in found) / 1e6
    what = "deleted" if delete else "can go (--delete)" if found else "can go"
    sys.stdout.write(
        f"{len(found):,} files, {total:,.1f} MB {what}; the run takes {sum(sizes(root).values()) / 1e6:,.1f} MB\n"
    )
    return 0


@click.command()
@click.argument("file", type=FILE, required=False)
@recipe_option
@click.option("--short", is_flag=True, help="only the keys that differ from the defaults")
@click.option("--out", default="", help="file to write; default: print it")
def params(file: Path | None, recipe: tuple[Path, ...], short: bool, out: str) -> int:
    """Complete and upgrade a params file: every key with its meaning, or only what differs from the defaults.

    Without FILE the defaults. What was filled in and what was renamed goes to stderr.
    """
    from mobileclip.config.params_file import render
    from mobileclip.config.upgrade import completed

    report = completed(file, recipes=recipe)
    for line in report.lines():
        notes().print(line, markup=False, highlight=False, soft_wrap=True)
    text = render(report.params, short=short)
    if out:
        storage.write_bytes(out, text.encode())
    else:
        sys.stdout.write(text)
    return 0


def _summary(root: str, stages: list[str]) -> int:
    """Print the result table, where the reports lie and, of promote, the decision; its exit code."""
    uri = storage.join(root, "evaluate", "results.json")
    if storage.exists(uri):
        from mobileclip.cli.summary import result_table

        tables.show(result_table(_read_json(uri)))
        sys.stdout.write(f"report: {storage.join(root, 'evaluate', 'report.html')}\n")
    if "promote" not in stages:
        return 0
    out = storage.join(root, "promote")
    refusals = [row["reason"] for row in _read_json(storage.join(out, "verdicts.json")) if not row["passed"]]
    registry = _read_json(storage.join(out, "registry.json"))
    student = f"'{registry['model']}' version {registry['version']}"
    for line in [f"refused: {reason}" for reason in refusals] or [f"promoted: {student}"]:
        sys.stdout.write(f"{line}\n")
    page = storage.join(out, "release.html")
    if storage.exists(page):
        sys.stdout.write(f"release: {page}\n")
    return exit_code("promote", _read_json(storage.join(out, "metrics.json")))


def _read_json(uri: str) -> Any:
    return json.loads(storage.read_bytes(uri))
