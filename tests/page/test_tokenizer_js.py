"""The page's tokenizer gives open_clip's ids: on the shipped vectors, on every character, on random strings."""

import json
import random
import unicodedata

import open_clip
import pytest

from mobileclip.formats.bundle import tokenizer, web
from tests.page import node

SCRIPT = """
import { createTokenizer } from "./tokenizer.js";
import { createCleaner } from "./cleaning.js";
const tokenize = createTokenizer(input.description), clean = createCleaner(input.tables);
const used = (ids) => ids.slice(0, ids.indexOf(49407) + 1);
output = input.texts.map((text) => used([...tokenize(clean(text))]));
"""


@pytest.fixture(scope="module")
def original():
    return open_clip.SimpleTokenizer(context_length=77)


@pytest.fixture(scope="module")
def corpus(original):
    """Vectors, prompts, every character this Python knows, random strings, entities and control sequences."""
    draw = random.Random(1)
    unused = {"Cn", "Cs", "Co"}
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in unused]
    words = ["".join(characters[i : i + 8]) for i in range(0, len(characters), 8)]
    pool = [chr(c) for c in [*range(9, 0x250), *range(0x370, 0x530), *range(0x600, 0x700), *range(0x3040, 0x30FF)]]
    pool += [chr(c) for c in range(0x1F300, 0x1F650)] + list(" &<>;#'\u03a3\u200d\ufe0f") * 20
    pool = [c for c in pool if unicodedata.category(c) not in unused and not "\x80" <= c <= "\x9f"]
    entities = [
        "&amp;",
        "&lt;",
        "&eacute",
        "&EACUTE;",
        "&#233;",
        "&#xe9",
        "&#150;",
        "&#0;",
        "&#xd800;",
        "&notit;",
        "&x;",
    ]
    pieces = [*entities, "a", "B'S", " ", "<b>", "\n", "\x1b[1m", "\r\n", "&", ";", "é"]
    return {
        "vectors": [row["text"] for row in tokenizer.vectors(original) if not row["mojibake"]],
        "prompts": [f"a photo of a {name}." for name in open_clip.IMAGENET_CLASSNAMES],
        "characters": [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)],
        "markup": ["".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(1500)],
        "random": ["".join(draw.choices(pool, k=draw.randint(1, 40))) for _ in range(2000)],
    }


@pytest.fixture(scope="module")
def answers(original, corpus, tmp_path_factory):
    """Ids by kind of text, all from one run of Node."""
    texts = [text for part in corpus.values() for text in part]
    data = {
        "description": tokenizer.describe(original), "tables": json.loads(web.cleaning_tables()), "texts": texts,
    }  # fmt: skip
    rows = iter(node.run(SCRIPT, data, tmp_path_factory.mktemp("node")))
    return {kind: [next(rows) for _ in part] for kind, part in corpus.items()}


@pytest.mark.parametrize("kind", ["vectors", "prompts", "characters", "markup", "random"])
def test_equal_to_open_clip(original, corpus, answers, kind):
    wanted = [row[: row.index(49407) + 1] for row in original(corpus[kind]).tolist()]
    different = [
        (text, want, got)
        for text, want, got in zip(corpus[kind], wanted, answers[kind], strict=True)
        if want != got and not _is_repaired(text)
    ]
    assert not different, f"{len(different)} of {len(wanted)}, first {different[0]}"


def test_vectors_are_those_of_the_export(original, answers, tmp_path):
    tokenizer.write(original, tmp_path)
    rows = json.loads((tmp_path / tokenizer.VECTORS_FILE).read_text(encoding="utf-8"))
    # Up to the end token, as SCRIPT gives them: a text may spell that token itself.
    wanted = [row["ids"][: row["ids"].index(49407) + 1] for row in rows if not row["mojibake"]]
    assert wanted == answers["vectors"]
    assert len(rows) > 45
    python = tokenizer.load(tmp_path)([row["text"] for row in rows])
    assert [ids[ids != 0].tolist() for ids in python] == [[i for i in row["ids"] if i] for row in rows]


def _is_repaired(text):
    """Whether ftfy takes the text for mojibake, which the page does not repair."""
    import ftfy

    plain = ftfy.TextFixerConfig(fix_encoding=False)
    return ftfy.fix_text(text, plain) != ftfy.fix_text(text)
