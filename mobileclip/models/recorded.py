"""Models found again by what a dataset says of them: the spec of an embedding column names its teacher."""

from collections.abc import Mapping
from typing import Any

from mobileclip.models import zoo

_WHOLE = ("trained", "hf-hub:", "local-dir:")


def reference(name: str) -> tuple[str, str]:
    """What `zoo.load` takes, from the name of a loaded model: (model, tag).

    A published name carries its tag, `ViT-L-14/openai`; one without was read from a lone weights file, which no name
    leads back to.
    """
    if name.startswith(_WHOLE):
        return name, ""
    model, _, tag = name.partition("/")
    return model, tag


def load_recorded(spec: Mapping[str, Any], *, trained: str = "") -> zoo.Clip:
    """The model by its recorded name; whether it has the recorded weights is for the caller to check.

    Args:
        spec: Of an embedding column.
        trained: Folder of train_teacher, for `trained:NAME`.

    Raises:
        ConfigError: See `zoo.load`.
        DataError: See `zoo.load`.
    """
    model, tag = reference(str(spec["model"]))
    return zoo.load(model, pretrained=tag, trained=trained)
