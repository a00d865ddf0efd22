"""What every section of params.yaml is made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Split = Literal["train", "validation", "test"]
HeldOut = Literal["auto", "train", "validation", "test"]
# Column names that are taken, alone or behind a teacher's.
TAKEN_COLUMNS = frozenset({"views", "captions", "scores", "selection"})
Dtype = Literal["float16", "bfloat16", "float32", "int8"]


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
