"""`python -m tests.pipelines.golden`: write the packages that the tests compare with, after a change that is wanted.

Defaults of sections stand in params.yaml, and the image is the user's choice: both are replaced by their names.
"""

import tempfile
from pathlib import Path

import yaml

from components.images import IMAGE
from mobileclip.config import STAGES
from pipelines import defaults
from pipelines.compile import compile_package

FOLDER = Path(__file__).parent / "golden"
CASES = [("train", "local"), ("train", "multi-node"), ("reinforce", "gpu"), ("release", "cpu"), ("sweep", "gpu")]


def render(text: str) -> str:
    """A package without what is not its own."""
    documents = list(yaml.safe_load_all(text.replace(IMAGE, "IMAGE")))
    for name, value in documents[0]["root"]["inputDefinitions"]["parameters"].items():
        if name in STAGES:
            value["defaultValue"] = f"section {name} of params.yaml"
    return yaml.safe_dump_all(documents)


def path(name: str, profile: str) -> Path:
    """Where a golden package lies."""
    return FOLDER / f"{name}.{profile}.yaml"


def write() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, profile in CASES:
            package = compile_package(name, defaults.read(), Path(folder) / "package.yaml", profile=profile)
            path(name, profile).write_text(render(package.read_text()))


if __name__ == "__main__":
    write()
