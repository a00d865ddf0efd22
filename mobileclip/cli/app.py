"""Run one command: its module is imported when it is asked for, its errors become one sentence and an exit code."""

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from mobileclip import stopping
from mobileclip.cli.install_hint import install_line
from mobileclip.cli.registry import COMMANDS, ROWS
from mobileclip.errors import MobileClipError

_NOISY = ("httpx", "alembic", "mlflow", "botocore", "urllib3", "matplotlib")
_EVERYWHERE = ("--debug", "--quiet", "-q")


class Commands(click.Group):
    """All commands of the registry, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, D102 - click's own
        return list(ROWS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, D102
        row = ROWS.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = (row.target or "stage:").partition(":")
        loaded: Any = importlib.import_module(f"mobileclip.cli.{module}")
        command: click.Command = getattr(loaded, attribute) if attribute else loaded.command(cmd_name)
        command.name, command.help = cmd_name, command.help or f"{row.summary[0].upper()}{row.summary[1:]}."
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:  # noqa: D102
        if args[0] not in ROWS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], ROWS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "`mobileclip --help` lists them all."
            raise click.UsageError(f"command: got '{args[0]}', {hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:  # noqa: ARG002
        """Names with their summaries; imports no command."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(r.name, help=r.summary) for r in COMMANDS if r.name.startswith(incomplete)]


cli = Commands("mobileclip", context_settings={"help_option_names": ["-h", "--help"]})


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell: `eval "$(mobileclip completion bash)"`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"shell: got '{shell}', want bash, zsh or fish.")
    sys.stdout.write(kind(cli, {}, "mobileclip", "_MOBILECLIP_COMPLETE").source() + "\n")
    return 0


def run(given: Sequence[str]) -> int:
    """Run one command.

    Args:
        given: Its words, with `--debug` and `--quiet` anywhere.

    Returns:
        0 done, 1 the work failed, 2 bad input, 3 the gate refused a promotion.
    """
    arguments = [a for a in given if a not in _EVERYWHERE]
    _set_up_logging(quiet=bool({"--quiet", "-q"} & set(given)))
    return _answered(arguments, debug="--debug" in given)


def _answered(arguments: list[str], *, debug: bool) -> int:
    try:
        with stopping.terminable(interrupts=True):
            return int(cli.main(arguments, prog_name="mobileclip", standalone_mode=False) or 0)
    except click.UsageError as error:
        usage = f"{error.ctx.get_usage()}\n" if error.ctx and error.ctx.command is not cli else ""
        sys.stderr.write(f"{usage}error: {error.format_message()}\n")
        return 2
    except MobileClipError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("interrupted; a re-run goes on from what is committed\n")
        return 130
    except stopping.Terminated as error:
        sys.stderr.write("terminated; a re-run goes on from what is committed\n")
        return int(error.code or 1)
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"error: {_sentence(error, arguments[0])}\n")
        return 1


def _sentence(error: Exception, command: str) -> str:
    if isinstance(error, ModuleNotFoundError) and (line := install_line(error.name or "")):
        return f"'{error.name}' is not installed, {command} needs it: {line}."
    return f"{type(error).__name__}: {error} (--debug shows the trace)"


class _AboveBars(logging.StreamHandler[Any]):
    """A handler to stderr that leaves tqdm's bars whole."""

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the bars, write the line, draw them again."""
        from tqdm import tqdm

        with tqdm.external_write_mode(sys.stderr):
            super().emit(record)


def _set_up_logging(*, quiet: bool) -> None:
    from mobileclip import parallel

    # Of the processes of `torchrun` all but the first one only warn.
    level = logging.WARNING if quiet or parallel.rank() else logging.INFO
    handler = _AboveBars()
    # Some libraries log by the root logger itself. Its level counts for our loggers, too, so a filter quiets them.
    handler.addFilter(lambda record: record.name != "root" or record.levelno >= logging.WARNING)
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", handlers=[handler])
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # also for the processes that a stage starts
        logging.getLogger().setLevel(logging.WARNING)
