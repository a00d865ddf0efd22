"""A student's programs for phones: written, proved, described, and run again without torch."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mobileclip.formats.runtime import Programs


def load(path: str | Path, *, image: str = "float32", text: str = "float32", threads: int = 0) -> "Programs":
    """Load programs of an export folder, or one program file; see `mobileclip.formats.runtime.load`."""
    from mobileclip.formats import runtime  # the package itself imports without a runtime

    return runtime.load(path, image=image, text=text, threads=threads)
