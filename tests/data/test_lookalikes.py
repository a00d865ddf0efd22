"""Near-duplicates: copies are found, other pictures are not, and bands lose no pair."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mobileclip.data.lookalikes import look, pairs


def _scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    return small.resize((320, 240), Image.Resampling.BICUBIC)


def _distance(a: Image.Image, b: Image.Image) -> int:
    bits = int.from_bytes(look(a), "big") ^ int.from_bytes(look(b), "big")
    return bits.bit_count()


def test_a_look_survives_encoding_and_resizing_and_tells_scenes_apart():
    for seed in range(20):
        image = _scene(seed)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=40)
        assert _distance(image, Image.open(stream)) <= 3
        assert _distance(image, image.resize((97, 60), Image.Resampling.BILINEAR)) <= 3
        assert _distance(image, _scene(seed + 100)) > 8


def test_the_bits_are_gradients_to_the_right():
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 28, dtype=np.uint8), (8, 1)))
    assert look(ramp) == b"\xff" * 8
    assert look(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == bytes(8)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    distance=st.integers(0, 8),
    flips=st.lists(st.tuples(st.integers(0, 19), st.lists(st.integers(0, 63), max_size=9)), max_size=30),
)
def test_pairs_are_those_of_comparing_all_with_all(seed, distance, flips):
    base = np.random.default_rng(seed).integers(0, 2**63, 20, dtype=np.uint64)
    changed = [base[place] ^ np.uint64(sum(1 << bit for bit in set(bits))) for place, bits in flips]
    looks = np.array([*base, *changed], dtype=np.uint64)
    first = {int(value): index for index, value in reversed(list(enumerate(looks)))}
    expected = {(first[int(v)], i, 0) for i, v in enumerate(looks) if first[int(v)] != i}
    heads = sorted(first.values())
    for place, a in enumerate(heads):
        for b in heads[place + 1 :]:
            bits = int(looks[a] ^ looks[b]).bit_count()
            if bits <= distance:
                expected.add((a, b, bits))
    found = list(pairs(looks, distance))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_a_thousand_flat_pictures_are_no_million_pairs():
    assert len(list(pairs(np.zeros(1000, dtype=np.uint64), 3))) == 999
    assert list(pairs(np.zeros(0, dtype=np.uint64), 3)) == []
