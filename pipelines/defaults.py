"""The sections of a params file as the pipelines' default parameters: one dict per stage."""

from pathlib import Path
from typing import Any

from mobileclip.config import read_params

PARAMS = Path(__file__).parents[1] / "params.yaml"

Sections = dict[str, dict[str, Any]]


def read(path: Path = PARAMS) -> Sections:
    """Read and check a params file.

    Args:
        path: Every key of every section is in it.

    Returns:
        Section by stage, plain JSON values.

    Raises:
        ConfigError: A key is unknown, missing or wrong; the sentence names it.
    """
    return read_params(path).model_dump(mode="json")
