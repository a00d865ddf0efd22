"""Near-duplicates: pictures whose coarse gradients agree, found without comparing all with all.

The look of a picture is a difference hash (dHash): shrunk to 9x8 grays, one bit per pair of neighbors in a row. Two
looks at Hamming distance d agree in at least one of d + 1 bands of their bits, so only pictures that share a band are
compared.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

_BITS = 64
_MOST = 20_000


def look(image: Image.Image) -> bytes:
    """8 bytes; equal for copies that were re-encoded or resized, mostly."""
    grays = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.HAMMING), dtype=np.int16)
    return np.packbits(grays[:, 1:] > grays[:, :-1]).tobytes()


def pairs(looks: np.ndarray, distance: int) -> Iterator[tuple[int, int, int]]:
    """Pairs of positions with looks at most `distance` bits apart, each with its distance.

    Of several equal looks each is paired with the first alone: a thousand white pictures are 999 pairs, not 499,500.

    Args:
        looks: uint64 [pictures].
        distance: Largest number of differing bits, 0 to 16.
    """
    unique, first, inverse = np.unique(looks, return_index=True, return_inverse=True)
    for position, group in enumerate(inverse.tolist()):
        if first[group] != position:
            yield int(first[group]), position, 0
    for a, b, bits in _close(unique, distance) if distance else ():
        one, other = sorted((int(first[a]), int(first[b])))
        yield one, other, bits


def _close(unique: np.ndarray, distance: int) -> Iterator[tuple[int, int, int]]:
    """Pairs of different looks, each once: in the first band that they share."""
    edges = np.linspace(0, _BITS, distance + 2).astype(int)
    bands = [
        (unique >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1) for low, high in itertools.pairwise(edges)
    ]
    for index, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) > 0, True])
        for low, high in itertools.pairwise(starts):
            members = order[low:high][:_MOST]  # a band of flat pictures must not make this quadratic
            for place, member in enumerate(members[:-1]):
                others = members[place + 1 :]
                bits = np.bitwise_count(unique[others] ^ unique[member])
                near = bits <= distance
                for earlier in bands[:index]:
                    near &= earlier[others] != earlier[member]
                yield from ((int(member), int(o), int(b)) for o, b in zip(others[near], bits[near], strict=True))
