"""Commands about a registered model: its promotions, their reasons, the way back, what devices measured."""

import json
import sys
from typing import Any

import click

from mobileclip.cli import tables
from mobileclip.cli.options import json_option, model_argument


@click.command()
@model_argument
@json_option
def history(model: str, as_json: bool) -> int:
    """Print the promotions of a registered model."""
    from mobileclip.promotion import log

    rows = log.history(model)
    return _json(rows) if as_json else _show(tables.render(rows))


@click.command()
@model_argument
@click.argument("version", default="champion")
@json_option
def explain(model: str, version: str, as_json: bool) -> int:
    """Print the gate's verdicts on a version or alias (default: champion)."""
    from mobileclip.promotion import log

    parts = log.explain(model, version)
    return (
        _json(parts) if as_json else _show(*(tables.render(rows, title=name) for name, rows in parts.items() if rows))
    )


@click.command()
@model_argument
@click.option("--why", required=True, help="reason, kept in the history")
def rollback(model: str, why: str) -> int:
    """Make the previous champion the champion again."""
    from mobileclip.promotion import log

    return _show(tables.render([log.rollback(model, why=why)]))


@click.command()
@model_argument
@click.argument("results")
@click.option("--version", default="champion", help="version or alias whose programs were measured")
def devices(model: str, results: str, version: str) -> int:
    """Record latency measured on devices with a version: RESULTS is a file, or a folder with *.device.json."""
    from mobileclip.promotion import devices as measured

    found = measured.attach(model, results, version=version)
    return _show(
        tables.render([{"device": t.removeprefix(measured.TAG), "both towers, ms": ms} for t, ms in found.items()])
    )


def _json(value: Any) -> int:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    return 0


def _show(*parts: Any) -> int:
    tables.show(*parts)
    return 0
