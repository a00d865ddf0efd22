"""Every command of the CLI: one row each. A new command is one function with click's decorators, and one row here."""

from dataclasses import dataclass

from mobileclip.chain import CHAIN


@dataclass(frozen=True)
class Row:
    """A command.

    Attributes:
        name: What is typed.
        group: Heading in the overview, one of `GROUPS`.
        summary: What it does, for the overview and its own help.
        target: `module:attribute` of its `click.Command`, imported when it is asked for; empty = a stage of the chain.
    """

    name: str
    group: str
    summary: str
    target: str = ""


GROUPS = ("stages", "chain", "data", "evaluation", "use", "registry", "export", "planning")

COMMANDS: tuple[Row, ...] = (
    *(Row(row.stage, "stages", row.title) for row in CHAIN),
    Row("init", "chain", "look at a folder of images and captions, and write a params file for it", "init:init"),
    Row("run", "chain", "run the whole chain, or a part of it; what is current is not run again", "chain:run"),
    Row("status", "chain", "show which stages are current, changed or missing, and why", "chain:status"),
    Row("params", "chain", "complete and upgrade a params file: every key, or only what differs", "chain:params"),
    Row("gc", "chain", "list or delete what the finished stages of a run no longer need", "chain:gc"),
    Row("kubeflow", "chain", "compile, submit and run the Kubeflow pipelines", "kubeflow:kubeflow"),
    Row("trace", "chain", "print the lineage of a file or stage folder back to its data", "data:trace"),
    Row("convert", "data", "read or write the public DataCompDR/DFNDR layout", "data:convert"),
    Row("verify", "data", "re-hash and check every file of a dataset, and replay stored views", "data:verify"),
    Row("publish", "data", "write folders into a DVC remote, without DVC or git", "data:publish"),
    Row("suite", "evaluation", "score a model on the 40 tasks of the DataComp suite, or your own", "scores:suite"),
    Row("compare", "evaluation", "say whether one student is better, over samples or seeds", "scores:compare"),
    Row("score", "evaluation", "score the programs of a bundle or export on a dataset", "scores:score"),
    Row("search", "use", "find the images of a folder that fit a text, or look like given images", "folder:search"),
    Row("classify", "use", "give every image of a folder the most likely of several labels", "folder:classify"),
    Row("embed", "use", "write the embeddings of a folder's images for other tools", "folder:embed"),
    Row("push", "use", "put a student into a folder or Hugging Face repository that other tools load", "share:push"),
    Row("history", "registry", "print the promotions of a registered model", "versions:history"),
    Row("explain", "registry", "print the gate's verdicts on a model version", "versions:explain"),
    Row("rollback", "registry", "make the previous champion the champion again", "versions:rollback"),
    Row("devices", "registry", "record latency measured on phones with a registered version", "versions:devices"),
    Row("bundle", "export", "zip an export with everything an app needs, or check such a zip", "programs:bundle"),
    Row("page", "export", "serve the page that runs a bundle or export in a browser", "programs:page"),
    Row("bench-latency", "export", "time students in every format and precision, turn by turn", "programs:latency"),
    Row("environment", "export", "make the environment of an exporter with conflicting pins", "programs:environment"),
    Row("plan", "planning", "estimate GPU-hours, storage, shards and groups of a reinforced dataset", "plan:plan"),
    Row("models", "planning", "list the architectures with their sizes", "plan:models"),
    Row("completion", "planning", "print the completion script of a shell", "app:completion"),
)  # fmt: skip

ROWS: dict[str, Row] = {row.name: row for row in COMMANDS}


def overview() -> str:
    """All commands by group, without importing any."""
    width = max(len(row.name) for row in COMMANDS) + 2
    lines = ["usage: mobileclip COMMAND [options]   (mobileclip COMMAND --help shows every option)"]
    for group in GROUPS:
        rows = [row for row in COMMANDS if row.group == group]
        lines += ["", group, *(f"  {row.name:<{width}}{row.summary}" for row in rows)]
    return "\n".join([*lines, "", "  --version, --debug (show traces), --quiet (warnings and results alone)", ""])
