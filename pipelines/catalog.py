"""All pipelines by short name."""

from collections.abc import Callable

from kfp.dsl.base_component import BaseComponent

from mobileclip.errors import ConfigError
from pipelines import reinforce, release, sweep, train
from pipelines.defaults import Sections

PIPELINES: dict[str, Callable[[Sections, str], BaseComponent]] = {
    "train": train.build,
    "reinforce": reinforce.build,
    "release": release.build,
    "sweep": sweep.build,
}


def build(name: str, sections: Sections, profile: str) -> BaseComponent:
    """A pipeline by short name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PIPELINES:
        raise ConfigError(f"pipeline: got '{name}', want one of {', '.join(PIPELINES)}.")
    return PIPELINES[name](sections, profile)
