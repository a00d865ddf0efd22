"""A student's programs for phones: written, proved, described, bundled, and run again without torch."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mobileclip.formats.runtime import Programs


def load(
    path: str | Path, *, image: str = "float32", text: str = "float32", format: str = "onnx", threads: int = 0
) -> "Programs":  # fmt: skip
    """Load programs of a bundle, an export folder, or one program file.

    Args:
        path: `mobileclip-STUDENT-VERSION.zip` (local or `s3://`; every checksum is verified), folder with
            `contract.json`, or a single program.
        image: Precision of the image program; empty = the most exact one there is.
        text: Precision of the text program; the same.
        format: Program format.
        threads: Threads per program; 0 = the runtime's choice.

    Raises:
        DataError: There is no such program.
        IntegrityError: A file is not the one the contract was written for.
    """
    from mobileclip.formats import runtime  # the package itself imports without a runtime
    from mobileclip.formats.bundle import archive as bundle

    if str(path).endswith(bundle.SUFFIX):
        path = bundle.unpacked(path)
    return runtime.load(path, image=image, text=text, format=format, threads=threads)
