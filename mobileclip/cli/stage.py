"""One stage as a command: `mobileclip X --params FILE --out DIR --INPUT PATH ... [--config.KEY VALUE ...]`."""

import re
from pathlib import Path
from typing import Any

import click
import yaml

from mobileclip import parallel
from mobileclip.chain import FAN_OUT, Step, step
from mobileclip.cli import tables
from mobileclip.cli.options import FILE, recipe_option
from mobileclip.config import Params, Section, check_section, read_params
from mobileclip.errors import ConfigError, GateRefused

_PREFIX = "--config."


class StageCommand(click.Command):
    """A stage's command: its options, and every key of its section as `--config.KEY`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the keys of the section out before click reads the rest."""
        rest, ctx.meta["config"] = _split(args, self.name or "")
        if "--params" in rest[:-1]:  # --help, which ends the parsing, shows its values
            ctx.meta["params"] = rest[rest.index("--params") + 1]
        try:
            return super().parse_args(ctx, rest)
        except click.NoSuchOption as error:
            word = error.option_name.lstrip("-").replace("-", "_")
            keys = type(getattr(Params(), self.name or "")).model_fields
            if word in keys:
                raise click.NoSuchOption(
                    error.option_name, f"{error.message} Did you mean '{_PREFIX}{word}'?", ctx=ctx
                ) from None
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The section's keys with the values of the params file."""
        path = Path(ctx.meta.get("params", "params.yaml"))
        params = read_params(path) if path.is_file() else Params()
        where = path if path.is_file() else "the defaults"
        formatter.write(f"\nKeys of the section '{self.name}' ({_PREFIX}KEY VALUE), values from {where}:\n\n")
        formatter.write(tables.text(tables.keys(getattr(params, self.name or ""))))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Options, and keys of the section."""
        from click.shell_completion import CompletionItem

        from mobileclip.config.params_file import describe

        found = super().shell_complete(ctx, incomplete)
        rows = describe(getattr(Params(), self.name or "")) if incomplete.startswith("--c") else []
        keys = [CompletionItem(_PREFIX + key, help=meaning) for key, kind, _, meaning in rows if kind]
        return [*found, *(item for item in keys if item.value.startswith(incomplete))]


def command(name: str) -> click.Command:
    """The command of a stage of the chain."""
    row = step(name)

    def work(params: Path, recipe: tuple[Path, ...], out: str, **given: Any) -> int:
        config = override(
            getattr(read_params(params, recipes=recipe), name), click.get_current_context().meta["config"]
        )
        inputs = {key: given.get(key) or "" for key in row.names}
        fan_out: dict[str, Any] = {key: given[key] for key in ("group", "num_groups", "merge") if key in given}
        asked = fan_out.get("merge") or (fan_out.get("group", 0), fan_out.get("num_groups", 1)) != (0, 1)
        from mobileclip.entry import run_stage

        metrics = run_stage(name, config, out=out, options=fan_out if asked else None, **inputs)
        if parallel.rank() == 0:
            tables.show(tables.metrics(name, metrics))
        return exit_code(name, metrics)

    made = StageCommand(name, callback=work, params=list(_options(row)))
    return recipe_option(made)


def _options(row: Step) -> list[click.Option]:
    options = [
        click.Option(["--params"], type=FILE, default="params.yaml", show_default=True, help="params file"),
        click.Option(["--out"], required=True, help="output folder or s3:// prefix"),
    ]  # fmt: skip
    for name in row.names:
        source = f"output of {row.inputs[name]}" if name in row.inputs else "your data"
        more = " (optional)" if name in row.optional else ""
        options.append(click.Option([f"--{name}"], required=not more, default="" if more else None, help=source + more))
    if row.stage in FAN_OUT:
        options += [
            click.Option(["--group"], type=int, default=0, help="unit of work of this process"),
            click.Option(["--num-groups"], type=int, default=1, help="number of units"),
            click.Option(["--merge"], is_flag=True, help="check that all units are done and publish"),
        ]
    return options


def exit_code(name: str, metrics: dict[str, float]) -> int:
    """3 where the gate refused a promotion, which is a result and not a failure; else 0."""
    return GateRefused.exit_code if name == "promote" and not metrics.get("promoted", 1.0) else 0


def override(config: Section, changes: list[tuple[str, str]]) -> Section:
    """A section with keys given on the command line.

    Args:
        config: The section of the params file.
        changes: Pairs of a dotted key that begins with the stage's name, and a YAML value.

    Raises:
        ConfigError: A key is unknown, or a value is wrong.
    """
    if not changes:
        return config
    values = config.model_dump(mode="json")
    name = changes[0][0].split(".")[0]
    for key, text in changes:
        _assign(values, key.split(".")[1:], text, name)
    return check_section(name, values)


def _split(args: list[str], name: str) -> tuple[list[str], list[tuple[str, str]]]:
    rest: list[str] = []
    changes: list[tuple[str, str]] = []
    words = iter(args)
    for word in words:
        if not word.startswith(_PREFIX):
            rest.append(word)
            continue
        flag, given, text = word.partition("=")
        value = text if given else next(words, None)
        if value is None:
            raise ConfigError(f"{name}: '{flag}' has no value.")
        key = re.sub(r"(?<=\w)-(?=\w)", "_", flag.removeprefix(_PREFIX))
        changes.append((f"{name}.{key}", value))
    return rest, changes


def _assign(values: dict[str, Any], path: list[str], text: str, name: str) -> None:
    """Put a YAML value at a dotted place; a place that is not there is left to the validation, which names it."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{name}.{'.'.join(path)}: got '{text}', want a YAML value.") from None
    place: Any = values
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise ConfigError(f"{name}.{'.'.join(path[: depth + 1])}: unknown key.")
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise ConfigError(f"{name}.{'.'.join(path[: depth + 1])}: unknown key.")
        if last:
            place[key] = value
        else:
            place = place[key] if isinstance(place, list) else place.setdefault(key, {})
