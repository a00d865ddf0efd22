"""`tokenizer.json` gives open_clip's token ids, on every character there is and on what people really write."""

import json
import random
import unicodedata

import numpy as np
import open_clip
import pytest

from mobileclip.errors import DataError
from mobileclip.formats.bundle import tokenizer

LENGTH = 77
HARD = [
    "", "   ", "x" * 500, "word " * 100, "it’s “quoted” ‘twice’", "don't we'll I'D they'RE 'S 'ſ",
    "ΟΔΥΣΣΕΥΣ ΟΔΟΣ. ΣΑΣ Σ ΑΣ’Α", "<end_of_text>", "a <start_of_text> b", "<END_OF_TEXT>",
    "&amp;lt;b&gt; &nbsp; &#x1F600;", "cafe\u0301 café CAFÉ", "naïve cafÃ© Ã¼ber â€œmojibakeâ€\x9d",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 1️⃣", "١٢٣ 四五六 ½ ² Ⅷ", "ﬁ ﬂ ﬃ ĳ", "ＡＢＣ　ｱｲｳ", "\u200b\u200czero\u200dwidth\ufeff",
    "İstanbul ISPARTA ı", "ß ẞ ǅ", "a\tb\nc\r\nd\x0be\x0cf\x1cg\x85h\xa0i", "new\u2028line\u2029s",
    "...!!!???---", "a_b-c/d\\e", "1,234.50% of $9", "\u0345 a\u0345b !\u0345", "K Å ſ", "\x00\x07\x1b[31mred",
    "नमस्ते दुनिया", "שלום עולם", "مرحبا بالعالم", "สวัสดีชาวโลก",
    "안녕하세요 세계", "こんにちは世界", "Привет, мир!", "Chào thế giới",
]  # fmt: skip


@pytest.fixture(scope="module")
def original():
    return open_clip.SimpleTokenizer(context_length=LENGTH)


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(original, folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    return tokenizer.load(folder)


def _assert_equal(exported, original, texts):
    wanted, got = original(texts).numpy(), exported(texts)
    different = np.flatnonzero((wanted != got).any(axis=1))
    assert not len(different), f"{len(different)} of {len(texts)} differ, first {texts[different[0]]!r}"


def test_hard_strings(exported, original):
    _assert_equal(exported, original, HARD)


def test_prompts(exported, original):
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    _assert_equal(exported, original, [f"a photo of a {name}." for name in names])
    _assert_equal(exported, original, [template(name) for template in templates for name in names[::100]])


def test_every_character(exported, original):
    """Every character that this Python knows, in words of eight."""
    unused = {"Cn", "Cs", "Co"}
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in unused]
    words = ["".join(characters[i : i + 8]) for i in range(0, len(characters), 8)]
    _assert_equal(exported, original, [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)])


def test_random_strings(exported, original):
    draw = random.Random(0)
    pool = [chr(code) for code in [*range(32, 0x250), *range(0x370, 0x530), *range(0x1F300, 0x1F650)]]
    pool = [c for c in pool if unicodedata.category(c) != "Cn" and c != "Σ"] + [" "] * 200
    _assert_equal(exported, original, ["".join(draw.choices(pool, k=draw.randint(1, 60))) for _ in range(3000)])


def test_cut_text_ends_with_the_end_token(exported):
    row = exported(["word " * 200])[0]
    assert row[0] == 49406
    assert row[-1] == 49407
    assert len(row) == LENGTH


def test_padding_is_zero(exported):
    row = exported(["a cat"])[0]
    assert row.tolist()[:4] == [49406, 320, 2368, 49407]
    assert not row[4:].any()
    assert row.dtype == np.int32


def test_merges_are_those_clip_was_trained_with(folder):
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(merges) == 1 + 48894
    assert merges[1] == "i n"
    assert sorted(vocabulary.values()) == list(range(49408))


def test_same_bytes_twice(original, folder, tmp_path):
    for path in tokenizer.write(original, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        tokenizer.load(tmp_path)
