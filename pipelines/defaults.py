"""The sections of a params file as the pipelines' default parameters: one dict per stage."""

from pathlib import Path
from typing import Any

from mobileclip.config import read_params

_BESIDE = Path(__file__).with_name("params.yaml")
PARAMS = _BESIDE if _BESIDE.exists() else Path(__file__).parents[1] / "params.yaml"
"""The project's own params file: beside this module in an installed package, at the root of a checkout."""

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
