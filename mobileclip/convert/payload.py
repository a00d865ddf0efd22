"""Embedding members of a sample: `npz` (float32) and `pth.gz` (bfloat16), read without ever running what they hold.

A tar from the web is not to be trusted: every size is checked against the bytes that are there before anything is
allocated, no object is unpickled but plain tensors, and compressed parts inflate to a bound.
"""

import gzip
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
import torch

from mobileclip.errors import DataError

Arrays = dict[str, torch.Tensor]
"""float32 [rows, dim] by name."""

MAX_BYTES = 64 << 20
"""No sample's embeddings are larger: 30 views and 6 texts of 1,536 values are 0.2 MB."""

_MAX_ARRAYS = 64
_NUMPY_TYPES = {"<f2", "<f4", "<f8"}
_TORCH_TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def to_npz(arrays: Mapping[str, torch.Tensor]) -> bytes:
    """An uncompressed npz of float32 arrays; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez(stream, **{name: tensor.float().contiguous().numpy() for name, tensor in sorted(arrays.items())})  # type: ignore[arg-type]
    return stream.getvalue()


def to_pth(arrays: Mapping[str, torch.Tensor]) -> bytes:
    """A gzipped `torch.save` of bfloat16 tensors; equal arrays give equal bytes."""
    stream = io.BytesIO()
    torch.save(
        {name: tensor.to(torch.bfloat16).contiguous().clone() for name, tensor in sorted(arrays.items())}, stream
    )
    return gzip.compress(stream.getvalue(), mtime=0)


def from_npz(data: bytes) -> Arrays:
    """Arrays of an npz.

    Raises:
        DataError: Damaged, too large, or not made of float matrices.
    """
    return {name.removesuffix(".npy"): _matrix(name, raw) for name, raw in _unzip(data, "npz").items()}


def from_pth(data: bytes) -> Arrays:
    """Tensors of a gzipped `torch.save`.

    torch's restricted unpickler knows tensors and containers and calls nothing a pickle names. It trusts sizes, though,
    so the archive must be an uncompressed zip (as torch writes it), and no tensor may be larger than the archive.

    Raises:
        DataError: Damaged, too large, or not made of float matrices.
    """
    raw = _gunzip(data)
    _unzip(raw, "pth.gz", stored=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - on hostile bytes torch raises far more than it documents
        said = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0]
        reason = said.split(" was not an allowed")[0].rstrip(".")[:160] or type(error).__name__
        raise DataError(f"pth.gz: refused by the restricted loader: {reason}.") from None
    if not isinstance(loaded, dict) or len(loaded) > _MAX_ARRAYS:
        raise DataError(f"pth.gz: holds {type(loaded).__name__}, want a dictionary of at most {_MAX_ARRAYS} tensors.")
    return {str(name): _plain(str(name), value, len(raw)) for name, value in loaded.items()}


def _gunzip(data: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        raw = inflate.decompress(data, MAX_BYTES)
    except zlib.error:
        raise DataError("pth.gz: is no gzip file.") from None
    if not inflate.eof:
        more = bool(inflate.unconsumed_tail) or len(raw) >= MAX_BYTES
        raise DataError(f"pth.gz: inflates to more than {MAX_BYTES} bytes." if more else "pth.gz: is cut.")
    return raw


def _unzip(data: bytes, kind: str, *, stored: bool = False) -> dict[str, bytes]:
    """Members of a zip, each read up to the size that its directory promises."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_BYTES or len(entries) > 4 * _MAX_ARRAYS:
                raise DataError(f"{kind}: holds more than {MAX_BYTES} bytes or {4 * _MAX_ARRAYS} members.")
            if stored and any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise DataError(f"{kind}: holds compressed members, want an archive as torch.save writes it.")
            if stored:
                return {}
            return {entry.filename: _read_entry(archive, entry) for entry in entries}
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile raises many kinds on damaged bytes
        raise DataError(f"{kind}: is no readable archive: {str(error).rstrip('.') or type(error).__name__}.") from None


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as handle:
        return handle.read(entry.file_size + 1)


def _matrix(name: str, raw: bytes) -> torch.Tensor:
    """A `.npy` as float32; numpy's own reader would allocate what the header says before it reads."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except (ValueError, struct.error, SyntaxError) as error:
        raise DataError(f"npz: '{name}' is no array: {str(error).partition(chr(10))[0].rstrip('.')}.") from None
    if dtype.str not in _NUMPY_TYPES or len(shape) != 2 or fortran:
        raise DataError(f"npz: '{name}' is {dtype} {list(shape)}, want a matrix of floats.")
    body = raw[stream.tell() :]
    if shape[0] * shape[1] * dtype.itemsize != len(body):
        raise DataError(f"npz: '{name}' has {len(body)} bytes, not those of {dtype} {list(shape)}.")
    return torch.from_numpy(np.frombuffer(body, dtype=dtype).reshape(shape).astype(np.float32))


def _plain(name: str, value: object, limit: int) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.dtype not in _TORCH_TYPES:
        raise DataError(f"pth.gz: '{name}' is no tensor of floats.")
    if value.ndim != 2 or value.is_meta or value.numel() * value.element_size() > limit:
        raise DataError(f"pth.gz: '{name}' has shape {list(value.shape)}, want a matrix that the file holds.")
    return value.detach().float()
