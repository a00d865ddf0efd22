"""What each command of the CLI does; torch is loaded only by the ones that run a stage."""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobileclip import parallel, storage
from mobileclip.chain import CHAIN, Step, step
from mobileclip.config import Params, Section, check_section, read_params
from mobileclip.entry import run_stage
from mobileclip.errors import ConfigError, GateRefused
from mobileclip.lineage.record import is_current
from mobileclip.lineage.state import chain_inputs, chain_states, read_run, write_run


def stage(name: str, arguments: list[str]) -> int:
    """Run one stage: `mobileclip X --params FILE --out DIR --INPUT PATH ... [--config.KEY VALUE ...]`."""
    row = step(name)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    known, _ = parser.parse_known_args(arguments)
    wants_help = bool({"-h", "--help"} & set(arguments))
    params = Params() if wants_help and not known.params.is_file() else read_params(known.params)
    options = _stage_parser(row, known.params)
    if wants_help:
        options.print_help()
        sys.stdout.write(f"\nkeys of the section '{name}' (--config.KEY VALUE), values from {known.params}\n")
        _print_keys(getattr(params, name))
        return 0
    chosen, rest = options.parse_known_args(arguments)
    config = _override(getattr(params, name), rest, name)
    inputs = {key: getattr(chosen, key) for key in row.names}
    fan_out = {"group": chosen.group, "num_groups": chosen.num_groups, "merge": chosen.merge}
    asked = chosen.merge or (chosen.group, chosen.num_groups) != (0, 1)
    metrics = run_stage(name, config, out=chosen.out, options=fan_out if asked else None, **inputs)
    if parallel.rank() == 0:
        _print_metrics(name, metrics)
    return _exit_code(name, metrics)


def run(arguments: argparse.Namespace) -> int:
    """Run the chain from a first to a last stage, skipping what is current."""
    params = read_params(arguments.params, recipes=arguments.recipe)
    names = [row.stage for row in CHAIN]
    chosen = CHAIN[names.index(arguments.first) : names.index(arguments.last) + 1]
    if not chosen:
        raise ConfigError(f"run: --from {arguments.first} comes after --to {arguments.last}.")
    console = Console(stderr=True)
    pending = [row for row in chosen if arguments.force or not _is_current(row, params, arguments)]
    if not pending:
        console.print(f"all {len(chosen)} stages are current in {arguments.root}")
        return _summary(arguments.root, [row.stage for row in chosen])
    write_run(arguments.root, params, source=arguments.source, towers=arguments.towers)
    from mobileclip.tracking import runs as tracking

    with tracking.parent_run(Path(arguments.root).name):
        for row in chosen:
            # Asked again at its turn: an earlier stage that ran may have changed this one's inputs.
            if not arguments.force and _is_current(row, params, arguments):
                console.print(f"[dim]{row.stage:<20}current[/dim]")
                continue
            start = time.perf_counter()
            inputs: Any = _inputs(row, arguments)
            out = storage.join(arguments.root, row.stage)
            run_stage(row.stage, getattr(params, row.stage), out=out, **inputs)
            console.print(f"{row.stage:<20}{time.perf_counter() - start:7.1f} s")
    return _summary(arguments.root, [row.stage for row in chosen])


def status(arguments: argparse.Namespace) -> int:
    """Print each stage's state, and why a run would run it."""
    root = arguments.place or arguments.root
    left = read_run(root) if arguments.params is None else None
    if left is None:
        params = read_params(arguments.params or Path("params.yaml"), recipes=arguments.recipe)
        source, towers = arguments.source, arguments.towers
    else:
        params, source, towers = left
    states = chain_states(params, root, source=source, towers=towers)
    if arguments.json:
        rows = [{"stage": s.stage, "state": s.kind, "why": list(s.why)} for s in states]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    table = Table("stage", "state", "why", box=None)
    for state in states:
        why = "" if state.kind == "waits" else "\n".join(state.why)
        table.add_row(state.stage, str(state), escape(why))
    Console().print(table)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check a dataset; exit 1 on damage."""
    from mobileclip.models.replay import verify as check

    report = check(arguments.data, teachers=arguments.teachers, samples=arguments.samples)
    sys.stdout.write(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return 0


def models(_: argparse.Namespace) -> int:
    """List the architectures."""
    from mobileclip.models.listing import HEADINGS, describe_models

    table = Table(*HEADINGS, box=None)
    for row in describe_models():
        table.add_row(*row.cells())
    Console(width=max(180, Console().width)).print(table)
    return 0


def trace(arguments: argparse.Namespace) -> int:
    """Print the lineage of a file, stage folder or registered model; exit code 1 where a digest disagrees."""
    from mobileclip.lineage.dvc import revisions
    from mobileclip.lineage.view import render
    from mobileclip.promotion.registered import trace as follow
    from mobileclip.tracking.origins import origins

    found = follow(arguments.path, roots=arguments.root)
    facts = origins(found)
    for digest, revision in revisions(found).items():
        facts[digest] = facts.get(digest, {}) | revision
    Console().print(render(found, facts))
    return 1 if found.problems else 0


def history(arguments: argparse.Namespace) -> int:
    """Print the promotions of a registered model."""
    from mobileclip.cli import tables
    from mobileclip.promotion import log

    Console().print(tables.render(log.history(arguments.model)))
    return 0


def rollback(arguments: argparse.Namespace) -> int:
    """Make the previous champion the champion again."""
    from mobileclip.cli import tables
    from mobileclip.promotion import log

    Console().print(tables.render([log.rollback(arguments.model, why=arguments.why)]))
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """Print the gate's verdicts on a version."""
    from mobileclip.cli import tables
    from mobileclip.promotion import log

    Console().print(tables.render_all(log.explain(arguments.model, arguments.version)))
    return 0


def params(arguments: argparse.Namespace) -> int:
    """Print or write a params file: every key with its meaning, or only what differs from the defaults.

    What was filled in and what was renamed goes to stderr.
    """
    from mobileclip.config.params_file import render
    from mobileclip.config.upgrade import completed

    report = completed(arguments.params, recipes=arguments.recipe)
    for line in report.lines():
        sys.stderr.write(f"{line}\n")
    text = render(report.params, short=arguments.short)
    if arguments.out:
        storage.write_bytes(arguments.out, text.encode())
    else:
        sys.stdout.write(text)
    return 0


def _stage_parser(row: Step, params: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"mobileclip {row.stage}", description=row.title.capitalize() + ".", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--params", type=Path, default=params, help="params file with the section")
    parser.add_argument("--out", required=True, help="output folder or s3:// prefix")
    for name in row.names:
        optional = name in row.optional
        source = row.inputs.get(name, "your data")
        parser.add_argument(
            f"--{name}",
            required=not optional,
            default="",
            help=f"input: output of {source}" + (" (optional)" if optional else ""),
        )
    parser.add_argument("--group", type=int, default=0, help="unit of work of this process (stages that fan out)")
    parser.add_argument("--num-groups", type=int, default=1, help="number of units")
    parser.add_argument("--merge", action="store_true", help="check that all units are done and publish")
    return parser


def _override(config: Section, rest: list[str], name: str) -> Section:
    """Apply `--config.KEY VALUE` to the section read from the params file."""
    if not rest:
        return config
    if any(a.startswith("--") and not a.startswith("--config.") for a in rest):
        raise ConfigError(f"{name}: unknown option {[a for a in rest if a.startswith('--')]}; keys are --config.KEY.")
    # `--config.KEY=VALUE` is `--config.KEY VALUE`.
    words = [w for a in rest for w in (a.split("=", 1) if a.startswith("--config.") else [a])]
    if len(words) % 2:
        raise ConfigError(f"{name}: '{words[-1]}' has no value.")
    values = config.model_dump(mode="json")
    for flag, text in zip(words[::2], words[1::2], strict=True):
        if not flag.startswith("--config."):
            raise ConfigError(f"{name}: '{flag}' has no key; keys are --config.KEY.")
        _assign(values, re.sub(r"(?<=\w)-(?=\w)", "_", flag.removeprefix("--config.")).split("."), text, name)
    return check_section(name, values)


def _assign(values: dict[str, Any], path: list[str], text: str, name: str) -> None:
    """Put a YAML value at a dotted place; the place must be there already."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{name}.{'.'.join(path)}: got '{text}', want a YAML value.") from None
    place: Any = values
    for depth, part in enumerate(path):
        known = range(len(place)) if isinstance(place, list) else place if isinstance(place, dict) else ()
        key = int(part) if isinstance(place, list) and part.isdigit() else part
        if key not in known:
            raise ConfigError(f"{name}.{'.'.join(path[: depth + 1])}: unknown key.")
        if depth == len(path) - 1:
            place[key] = value
        place = place[key]


def _inputs(row: Step, arguments: argparse.Namespace) -> dict[str, str]:
    return chain_inputs(row, arguments.root, source=arguments.source, towers=arguments.towers)


def _is_current(row: Step, params: Params, arguments: argparse.Namespace) -> bool:
    out = storage.join(arguments.root, row.stage)
    return is_current(row.stage, getattr(params, row.stage), out, _inputs(row, arguments))


def _summary(root: str, stages: list[str]) -> int:
    """Print the result table, where the reports lie and, of promote, the decision; its exit code."""
    uri = storage.join(root, "evaluate", "results.json")
    if storage.exists(uri):
        from mobileclip.cli.summary import result_table

        Console(width=max(132, Console().width)).print(result_table(_read_json(uri)))
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
    return _exit_code("promote", _read_json(storage.join(out, "metrics.json")))


def _read_json(uri: str) -> Any:
    return json.loads(storage.read_bytes(uri))


def _print_keys(section: Section) -> None:
    from mobileclip.config.params_file import describe

    table = Table("key", "type", "value", "meaning", box=None, pad_edge=False)
    for row in describe(section):
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console(width=max(120, Console().width)).print(table)


def _print_metrics(name: str, metrics: dict[str, float]) -> None:
    table = Table(name, "", box=None)
    for key, value in metrics.items():
        table.add_row(key, f"{value:.6g}")
    Console(width=min(120, Console().width) if os.isatty(1) else 120).print(table)


def _exit_code(name: str, metrics: dict[str, float]) -> int:
    return GateRefused.exit_code if name == "promote" and not metrics.get("promoted", 1.0) else 0
