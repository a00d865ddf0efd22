"""The chain as data: which stage reads what. Every door (CLI, dvc.yaml, pipelines) wires this one table."""

from dataclasses import dataclass, field

from mobileclip.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """One stage of the chain.

    Attributes:
        stage: Its name, in all six places.
        inputs: Input name to the stage whose output folder it is.
        external: Inputs that come from outside the chain (raw data, pretrained towers).
        optional: Inputs that may be absent.
        title: What it does, in five words.
    """

    stage: str
    title: str
    inputs: dict[str, str] = field(default_factory=dict)
    external: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs, external ones first."""
        return (*self.external, *self.inputs)


CHAIN: tuple[Step, ...] = (
    Step("prepare", "images and captions to shards", external=("source",)),
    Step(
        "train_teacher",
        "train in-domain CLIP teachers",
        {"data": "prepare"},
        external=("towers",),
        optional=("towers",),
    ),
    Step("filter", "keep the best pairs", {"data": "prepare", "teachers": "train_teacher"}, optional=("teachers",)),
    Step(
        "finetune_captioner",
        "pre-train and fine-tune CoCa",
        {"data": "filter"},
        external=("towers",),
        optional=("towers",),
    ),
    Step(
        "caption",
        "write synthetic captions",
        {"data": "filter", "captioner": "finetune_captioner"},
        optional=("captioner",),
    ),
    Step(
        "reinforce",
        "store views and embeddings",
        {"data": "caption", "teachers": "train_teacher"},
        optional=("teachers",),
    ),
    Step("calibrate", "tune teacher logit scales", {"data": "reinforce"}),
    Step(
        "distill",
        "train the student",
        {"data": "calibrate", "teachers": "train_teacher"},
        optional=("teachers",),
    ),
    Step("evaluate", "score student against control", {"data": "calibrate", "student": "distill"}),
    Step("export", "write programs with proof", {"data": "prepare", "student": "distill"}),
    Step(
        "promote",
        "register, gate, set aliases",
        {"student": "distill", "evaluation": "evaluate", "programs": "export"},
    ),
)

# Stages whose shards may be shared out among processes: a group each, then a merge.
FAN_OUT: tuple[str, ...] = ("caption", "reinforce")


def step(stage: str) -> Step:
    """The chain's row of a stage.

    Raises:
        ConfigError: There is no such stage.
    """
    for row in CHAIN:
        if row.stage == stage:
            return row
    raise ConfigError(f"stage: got '{stage}', want one of {', '.join(row.stage for row in CHAIN)}.")
