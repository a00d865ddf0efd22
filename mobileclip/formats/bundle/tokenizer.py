"""CLIP's byte-pair tokenizer as files a phone can read: Hugging Face `tokenizer.json`, and `vocab.json` + `merges.txt`.

The vocabulary file that circulates with the original weights lists 262,144 merges; CLIP was trained with the first
48,894. Taking all of them splits ordinary words differently, so what is written here is what open_clip really uses.
"""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats.contract import TextContract

FOLDER = "tokenizer"
FILE_NAME = "tokenizer.json"
VECTORS_FILE = "vectors.json"
PAD_ID = 0
CLEANING = [
    "repair mojibake, ligatures and character width as ftfy.fix_text does",
    "unescape HTML entities, twice",
    "strip white space",
]
SPACING = "replace each run of white space by one space"
"""The last step before a Hugging Face tokenizer; in CLIP's it is a part of the file."""

# Texts that tell a right tokenizer from a wrong one; every port is tested on them. The last ones need ftfy's repair.
VECTORS = [
    "", "   ", "a photo of a cat.", "x" * 500, "word " * 100, "it’s “quoted” ‘twice’", "don't we'll I'D they'RE 'S 'ſ",
    "ΟΔΥΣΣΕΥΣ ΟΔΟΣ. ΣΑΣ Σ ΑΣ’Α", "<end_of_text>", "a <start_of_text> b", "<END_OF_TEXT>",
    "&amp;lt;b&gt; &nbsp; &#x1F600;", "&EACUTE;clair &notit; &#150; a&b; &#0; <b>&eacute;</b>\n&eacute;",
    "cafe\u0301 café CAFÉ", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 1️⃣",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🫠 ☺︎ ☺️",
    "١٢٣ 四五六 ½ ² Ⅷ", "ﬁ ﬂ ﬃ ĳ", "ＡＢＣ　ｱｲｳ", "\u200b\u200czero\u200dwidth\ufeff", "İstanbul ISPARTA ı", "ß ẞ ǅ",
    "a\tb\nc\r\nd\x0be\x0cf\x1cg\x85h\xa0i", "new\u2028line\u2029s", "...!!!???---", "a_b-c/d\\e", "1,234.50% of $9",
    "\u0345 a\u0345b !\u0345", "K Å ſ", "\x00\x07\x1b[31mred", "नमस्ते दुनिया", "שלום עולם", "مرحبا بالعالم",
    "สวัสดีชาวโลก", "안녕하세요 세계", "こんにちは世界", "北京的天空", "Привет, мир!", "Chào thế giới",
    "მშვიდობა", "Բարեւ", "ሰላም ልዑል", "ᎣᏏᏲ",
    "naïve façade Ærøskøbing Łódź", "https://example.org/a?b=c&d=e#f", "C++ & F# 2.0 @home #tag", "(╯°□°）╯︵ ┻━┻",
    "∑ x² ≥ √y ⇒ π≈3.14", "naïve cafÃ© Ã¼ber â€œmojibakeâ€\x9d",
]  # fmt: skip
NUM_REPAIRED = 1

# Patterns hold the characters themselves and no engine's own escapes or flags, so that Rust, JavaScript and Swift read
# them alike. First Python's white space, spelled out: what `\s` covers differs between engines.
_SPACE = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
# CLIP's own pattern, for text in lower case. Ignoring case, as CLIP does, takes the long s for an s, and the iota below
# (a mark that folds to a letter) for neither letter nor sign, so that it is dropped. Special tokens are added tokens.
_WORDS = "'[s\u017f]|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}\u0345]+"
# Lower case by single characters, as tokenizer libraries do it, misses the Greek sigma at a word's end (Unicode's
# Final_Sigma: after a cased letter, not before one, signs that have no case between them passed over).
_CASED = r"\p{Lu}\p{Ll}\p{Lt}"
_CASELESS = r"\p{M}\p{Cf}\p{Lm}\p{Sk}'.:"
_FINAL_SIGMA = f"(?<=[{_CASED}]|[{_CASED}][{_CASELESS}])\u03a3(?![{_CASELESS}]*[{_CASED}])"

Tokenize = Callable[[Sequence[str]], NDArray[np.int32]]


def write(tokenizer: Any, folder: Path) -> list[Path]:
    """Write the tokenizer in both forms and the test vectors; the same vocabulary gives the same bytes.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`.
        folder: Target folder, made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = [list(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    texts = {
        FILE_NAME: _json(describe(tokenizer)),
        "vocab.json": _json(tokenizer.encoder),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n",
        VECTORS_FILE: _json(vectors(tokenizer)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]


def describe(tokenizer: Any) -> dict[str, Any]:
    """`tokenizer.json` of open_clip's `SimpleTokenizer`, for texts that went through `CLEANING`."""
    start, end, length = tokenizer.sot_token_id, tokenizer.eot_token_id, tokenizer.context_length
    names = {tokenizer.decoder[start]: start, tokenizer.decoder[end]: end}
    first, last = names
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": PAD_ID, "pad_type_id": 0, "pad_token": tokenizer.decoder[PAD_ID],
        },
        "added_tokens": [{"id": id_, "content": name, **flags} for name, id_ in names.items()],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers()},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(first), {"Sequence": {"id": "A", "type_id": 0}}, _special(last)],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in names.items()},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": tokenizer.encoder, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def vectors(tokenizer: Any) -> list[dict[str, Any]]:
    """`VECTORS` with the original tokenizer's ids, padding cut off, and whether ftfy's repair of mojibake is needed."""
    rows = [[int(id_) for id_ in row] for row in tokenizer(VECTORS)]
    return [
        {"text": text, "ids": row[: _used(row, PAD_ID)], "mojibake": index >= len(VECTORS) - NUM_REPAIRED}
        for index, (text, row) in enumerate(zip(VECTORS, rows, strict=True))
    ]


def load(folder: Path) -> Tokenize:
    """CLIP's tokenizer of an export folder: texts to int32 [texts, context_length], `CLEANING` included.

    Raises:
        DataError: The folder holds none, or the packages that run it are missing.
    """
    return _runner(_open(folder), str)


def of_export(folder: Path, terms: TextContract) -> Tokenize:
    """The tokenizer that an export's contract describes, CLIP's or a Hugging Face one.

    Args:
        folder: The export folder.
        terms: Its contract's `text`.

    Raises:
        DataError: The folder holds none, or the packages that run it are missing.
        IntegrityError: It gives other ids for the golden texts than the student's own tokenizer did.
    """
    loaded = _open(folder / FOLDER)
    clean: Callable[[str], str] = str
    if terms.tokenizer == "hugging-face":
        token = loaded.id_to_token(terms.pad_id) if terms.pad_id >= 0 else None
        loaded.enable_truncation(max_length=terms.context_length)
        loaded.enable_padding(length=terms.context_length, pad_id=max(terms.pad_id, 0), pad_token=token or "[PAD]")
        clean = _spaced
    tokenize = _runner(loaded, clean)
    golden = folder / "golden.json"
    if golden.is_file():
        stated = json.loads(golden.read_text(encoding="utf-8"))
        if not np.array_equal(tokenize(stated["texts"]), np.array(stated["tokens"])):
            raise IntegrityError(
                f"tokenizer: '{folder / FOLDER}' gives other ids for the texts of {golden.name} than the student's "
                "tokenizer did; the versions of tokenizers and ftfy may be too old."
            )
    return tokenize


def _open(folder: Path) -> Any:
    if not (folder / FILE_NAME).is_file():
        raise DataError(f"tokenizer: no {FILE_NAME} in '{folder}', want the tokenizer folder of an export.")
    try:
        from tokenizers import Tokenizer  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return Tokenizer.from_file(str(folder / FILE_NAME))


def _runner(loaded: Any, clean: Callable[[str], str]) -> Tokenize:
    try:
        from ftfy import fix_text
    except ModuleNotFoundError as error:
        raise _missing(error) from None

    def tokenize(texts: Sequence[str]) -> NDArray[np.int32]:
        cleaned = [clean(html.unescape(html.unescape(fix_text(text))).strip()) for text in texts]
        return np.array([row.ids for row in loaded.encode_batch(cleaned)], dtype=np.int32)

    return tokenize


def _missing(error: ModuleNotFoundError) -> DataError:
    return DataError(f"tokenizer: the package '{error.name}' is missing, install tokenizers and ftfy.")


def _spaced(text: str) -> str:
    """Runs of white space as one space: open_clip does that before a Hugging Face tokenizer."""
    return " ".join(text.split())


def _normalizers() -> list[dict[str, Any]]:
    """What open_clip's cleaning does by single characters; the typographic quotes are what phone keyboards type."""
    return [
        _replace("[\u02bc\u2018-\u201b]", "'"),
        _replace("[\u201c-\u201f]", '"'),
        {"type": "NFC"},
        _replace(_SPACE, " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
        _replace(_FINAL_SIGMA, "\u03c2"),
        {"type": "Lowercase"},
    ]


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _used(row: Sequence[int], pad: int) -> int:
    return max((i + 1 for i, id_ in enumerate(row) if id_ != pad), default=0)


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
