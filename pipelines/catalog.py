"""All pipelines by short name."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
    # kfp looks through the whole call stack at every setting of a task, and for each frame through all loaded modules:
    # below a notebook or a test runner that takes half a minute. A thread of its own has a short stack.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(PIPELINES[name], sections, profile).result()
