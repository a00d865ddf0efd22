"""The command that hands a student on."""

import sys

import click

from mobileclip.cli.options import Words


@click.command(cls=Words)
@click.argument("model")
@click.argument("to")
@click.option("--programs", default="", help="the student's bundle or export folder; default: that of the run's root")
@click.option("--layouts", multiple=True, help="some of open_clip, transformers.js, immich; default: all there can be")
@click.option("--private", is_flag=True, help="a repository that is new is private")
@click.option("--message", default="", help="of the commit")
def push(model: str, to: str, programs: str, layouts: tuple[str, ...], private: bool, message: str) -> int:
    """Write MODEL in the layouts that other tools load, with a model card, into the folder or repository TO.

    MODEL is the root of a run, a student's folder, a bundle or an export folder; TO a new folder or hf-hub:OWNER/NAME.
    """
    from mobileclip.sharing.push import push as hand_on

    files = hand_on(model, to, programs=programs, wanted=layouts, private=private, message=message)
    sys.stdout.write("".join(f"{name}\n" for name in files) + f"{len(files)} files: {to}\n")
    return 0
