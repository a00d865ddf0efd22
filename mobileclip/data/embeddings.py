"""Embedding columns: `features` [rows, dim] with `counts` int64 [samples + 1], in one of four storage types.

Sample i owns rows counts[i]..counts[i + 1]: its N views, or its captions in order. int8 has one float16 scale per
vector (`scales`). float16 is the default: for unit vectors its rounding error is 9 times smaller than bfloat16's.
"""

from collections.abc import Sequence

import torch

from mobileclip.data.columns import ColumnReader, Tensors

_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def encode(features: torch.Tensor, counts: Sequence[int], dtype: str) -> Tensors:
    """Tensors of an embedding column file.

    Args:
        features: float32 [rows, dim], unit norm.
        counts: Rows per sample.
        dtype: float16, bfloat16, float32 or int8.
    """
    ends = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
    if dtype == "int8":
        scales = (features.abs().amax(dim=1) / 127).clamp_min(1e-8).to(torch.float16)
        quantized = (features / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"features": quantized, "scales": scales, "counts": ends}
    return {"features": features.to(_TYPES[dtype]), "counts": ends}


def as_stored(features: torch.Tensor, dtype: str) -> torch.Tensor:
    """What is read back of vectors that are stored in a type.

    Args:
        features: float32 [rows, dim].
        dtype: As for `encode`.

    Returns:
        float32 [rows, dim].
    """
    stored = encode(features, [len(features)], dtype)
    vectors = stored["features"].float()
    return vectors * stored["scales"].float()[:, None] if "scales" in stored else vectors


def decode_row(reader: ColumnReader, sample: int, index: int) -> torch.Tensor:
    """One vector of one sample as float32 [dim]; only its bytes are read."""
    position = int(reader.row("counts", sample)) + index
    vector = reader.row("features", position)
    if vector.dtype == torch.int8:
        return vector.float() * reader.row("scales", position).float()
    return vector.float()


def decode_all(reader: ColumnReader) -> tuple[torch.Tensor, torch.Tensor]:
    """All vectors as float32 [rows, dim] with the row counts int64 [samples + 1]."""
    features = reader.all("features")
    if features.dtype == torch.int8:
        return features.float() * reader.all("scales").float()[:, None], reader.all("counts")
    return features.float(), reader.all("counts")
