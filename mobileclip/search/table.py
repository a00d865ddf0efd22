"""Embeddings of a folder as a file for other tools: Parquet or npz."""

import io
from pathlib import Path

import numpy as np

from mobileclip import storage
from mobileclip.errors import ConfigError
from mobileclip.search.index import Index
from mobileclip.search.model import Model

SUFFIXES = (".parquet", ".npz")


def check(out: str) -> None:
    """Refuse a file that cannot be written, before any image is read.

    Raises:
        ConfigError: Its ending is no known one, or Parquet is not installed.
    """
    if Path(out).suffix not in SUFFIXES:
        raise ConfigError(f"out: got '{out}', want a file that ends in {' or '.join(SUFFIXES)}.")
    if out.endswith(".parquet"):
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError(
                "out: Parquet needs the package 'pyarrow', install mobileclip-pipelines[parquet] or want .npz."
            ) from None


def write(index: Index, model: Model, out: str) -> int:
    """Write path, digest and embedding of every image, in the order of their names; how many.

    Parquet has the columns `path`, `sha256` and `embedding` (a fixed-size list of float32) and the model in its
    metadata; npz the arrays `paths`, `sha256`, `embeddings` and `model`, readable without pickle.

    Args:
        index: Of the folder.
        model: The one that made it.
        out: File or `s3://` object ending in .parquet or .npz.

    Raises:
        ConfigError: Its ending is no known one.
    """
    check(out)
    names = index.names
    digests = [index.entries[name].sha256 for name in names]
    readable = [name.encode("utf-8", "replace").decode() for name in names]
    rows = index.embeddings(names)
    data = (_parquet if out.endswith(".parquet") else _npz)(readable, digests, rows, model)
    storage.write_bytes(out, data)
    return len(names)


def _npz(names: list[str], digests: list[str], rows: np.ndarray, model: Model) -> bytes:
    stream = io.BytesIO()
    np.savez(
        stream, paths=np.array(names), sha256=np.array(digests), embeddings=rows,
        model=np.array([model.name, model.identity]),
    )  # fmt: skip
    return stream.getvalue()


def _parquet(names: list[str], digests: list[str], rows: np.ndarray, model: Model) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), rows.shape[1])
    table = pa.table({"path": names, "sha256": digests, "embedding": vectors})
    stated = {"model": model.name, "identity": model.identity, "logit_scale": f"{model.logit_scale:.6g}"}
    sink = pa.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata(stated), sink, compression="zstd")
    return bytes(sink.getvalue())
