"""`mobileclip kubeflow WORK`: the pipelines' own commands, also where the package is installed without a checkout."""

import importlib

import click

from mobileclip.errors import ConfigError

WORKS = {
    "submit": "upload a pipeline version and start a run of it",
    "compile": "write the pipeline packages",
    "run": "run a pipeline on this machine, with the SDK's runner",
    "sizes": "sizes of packages and runs against what the platform takes",
    "versions": "list the versions of a server, or compare two",
}


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    epilog="\b\n" + "\n".join(f"{name:<10}{what}" for name, what in WORKS.items()),
)
@click.argument("work", type=click.Choice([*WORKS, "--help"]), metavar=f"[{'|'.join(WORKS)}]")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def kubeflow(context: click.Context, work: str, arguments: tuple[str, ...]) -> int:
    """Compile, submit and run the Kubeflow pipelines; each WORK has a --help of its own."""
    if work == "--help":
        click.echo(context.get_help())
        return 0
    try:
        module = importlib.import_module(f"pipelines.{work}")
    except ModuleNotFoundError as error:
        if error.name != "pipelines":
            raise
        raise ConfigError("kubeflow: the package 'pipelines' is not here, want it installed or a checkout.") from None
    return int(module.main(list(arguments)))
