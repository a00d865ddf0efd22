"""MobileCLIP Pipelines: train, ship and promote mobile CLIP models."""

from pathlib import Path as _Path

__version__ = "0.1.0"

if (
    _Path(__file__).parent / "modules"
).is_dir():  # Apple's package has the same import name and unpacks into this folder
    raise ImportError(
        "mobileclip: two distributions share this folder, mobileclip-pipelines and Apple's mobileclip; "
        "want an environment of its own for each (pip uninstall mobileclip, then reinstall mobileclip-pipelines)."
    )
