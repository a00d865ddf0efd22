"""Texts as people save them: encodings, lines, and captions with their translations."""

import codecs
import re
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# str.splitlines also cuts at form feeds, U+0085 and U+2028, which stand within sentences.
_LINE = re.compile(r"\r\n|\n|\r")
_TRANSLATION = re.compile(r"([a-z]{2,3}(?:[_@-][A-Za-z]+)*)\.utf8=(.*)")
_HEAD = 4096


def encoding(head: bytes) -> str:
    """The encoding of a file by its first bytes: a byte-order mark, UTF-16 by its zero bytes, else UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    head = head[: len(head) // 2 * 2]
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if zeros and zeros.count(0) > 0.4 * len(zeros) and head.count(0) < 0.6 * len(head):
            return name
    return "utf-8"


def file_encoding(path: Path) -> str:
    """`encoding` of a file."""
    with path.open("rb") as handle:
        return encoding(handle.read(_HEAD))


def decode(data: bytes) -> str:
    """Text in UTF-8, UTF-16 or UTF-32 without its byte-order mark; what is in no encoding becomes U+FFFD."""
    return data.decode(encoding(data[:_HEAD]), errors="replace").removeprefix("\ufeff")


def lines(text: str) -> list[str]:
    """Lines that are not blank, without the space around them; only line feeds and carriage returns end one."""
    return [line for line in (part.strip().strip("\ufeff") for part in _LINE.split(text)) if line]


def captions(text: str) -> tuple[list[str], dict[str, str]]:
    """Captions, one a line, and translations by language (`de.utf8=Ein Hund.`, as Tux Paint writes them)."""
    plain, translated = [], {}
    for line in lines(text):
        match = _TRANSLATION.fullmatch(line)
        if match is None:
            plain.append(line)
        elif match[2].strip():
            translated[match[1]] = match[2].strip()
    return plain, translated
