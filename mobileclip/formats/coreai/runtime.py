"""Compute with Core AI assets in the engine that `coreai-core` brings along for systems that are none of Apple's.

It reads the asset as written and computes it on the CPU. It is not the framework of Apple's systems, which specializes
the asset for GPU and Neural Engine, so its figures count as an emulation's.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import DataError, ExportError
from mobileclip.formats import environment
from mobileclip.formats.program_ports import Port
from mobileclip.formats.runtime import Encoder, Floats, filled, refusal

ENVIRONMENT = "coreai"
WORKER = Path(__file__).with_name("worker.py")
_TYPES = {"image": "Float32", "text": "Int32"}
_ARRAY = re.compile(r"NDArray \((\w+), (\d+(?: × \d+)*)\)")


def open_program(path: Path, threads: int) -> Encoder:
    """Read an `.aimodel` and check its interface.

    Args:
        path: The asset.
        threads: Not used: nothing here is timed.

    Raises:
        ConfigError: The environment was not made.
        DataError: It is no asset, or its interface is not a tower's.
    """
    del threads
    given, result = _interface(path, _work({"task": "inspect"}, path)[0])
    batch = int(given.shape[0])
    known: dict[bytes, Floats] = {}

    def execute(rows: NDArray[np.generic]) -> Floats:
        # Every call is a process, so what was computed is kept: a proof asks for the same rows more than once.
        digests = [hashlib.sha256(row.tobytes()).digest() for row in rows]
        new = {digest: row for digest, row in zip(digests, rows, strict=True) if digest not in known}
        order = list(new)
        step = max(1, _ROWS // batch) * batch
        for some in (order[start : start + step] for start in range(0, len(order), step)):
            calls = filled(np.stack([new[digest] for digest in some]), batch)
            _, features = _work({"task": "run", "batch": batch}, path, calls)
            known.update(zip(some, features[: len(some)], strict=True))
        return np.stack([known[digest] for digest in digests])

    return Encoder(path, given, result, execute)


# The engine's beta dies in this way now and then, on a busy machine, with assets that it computes the next time.
_CRASH = "C++ exception handling detected but the Swift runtime"
_TRIES = 3
# More rows in one process kill it more often.
_ROWS = 64


def _work(
    request: dict[str, Any], path: Path, rows: NDArray[np.generic] | None = None
) -> tuple[dict[str, Any], Floats]:
    """Ask the worker; its reply, and what it computed of the rows."""
    with tempfile.TemporaryDirectory(prefix="mobileclip-coreai-") as name:
        exchange = Path(name)
        if rows is not None:
            np.save(exchange / "rows.npy", rows)
        for left in reversed(range(_TRIES)):
            try:
                reply = environment.run(ENVIRONMENT, WORKER, {**request, "asset": str(path.resolve())}, exchange)
                break
            except ExportError as error:
                if not left or _CRASH not in str(error):
                    raise refusal("Core AI", path, error) from None
        return reply, np.empty(0, np.float32) if rows is None else np.load(exchange / "features.npy")


def _interface(path: Path, found: dict[str, Any]) -> tuple[Port, Port]:
    """Input and output of a tower."""
    main = found["functions"].get("main", {"inputs": [], "outputs": []})
    given, result = dict(main["inputs"]), dict(main["outputs"])
    tower = next(iter(given), "")
    arrays = [_ARRAY.fullmatch(kind) for kind in (given.get(tower, ""), result.get(f"{tower}_features", ""))]
    kinds = [array[1] if array else "" for array in arrays]
    if len(given) != 1 or len(result) != 1 or kinds != [_TYPES.get(tower), "Float32"]:
        raise DataError(
            f"programs: '{path.name}' has the functions {found['functions']}, want 'main' of 'image' (Float32) or "
            "'text' (Int32) to its features (Float32)."
        )
    shapes = [tuple(int(size) for size in array[2].split(" × ")) for array in arrays if array]
    return Port(tower, kinds[0].lower(), shapes[0]), Port(f"{tower}_features", kinds[1].lower(), shapes[1])
