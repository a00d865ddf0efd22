"""Captions of two qualities: raw alt text (names and tags), and better sentences made of the same facts.

The alt text is what a crawl would give. The sentences, built from the name, subgroup and group alone
by the wording in ``wording.yaml``, are the small better set that a caption generator is tuned on.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from examples.emoji.catalog import Concept
from mobileclip.errors import DataError

WORDING_FILE = Path(__file__).with_name("wording.yaml")

_HEAD_ENDS = re.compile(r" (?:with|without|in|on|of|at|behind|to|for|over|from|showing|pointing|facing) ")
_NOTE = re.compile(r"^(?P<name>.+) \((?P<note>.+)\)$")
_CLOCK = re.compile(r"(?:o’clock|-thirty)$")
_PERSON = re.compile(r"^(?P<person>person|man|woman|people|men|women|face|head)\b")
_BEFORE_NOUN = "with|without|in|on|behind|over|rowing|bouncing|getting|feeding|wearing|tipping|raising|taking"
_NUMBERS = {2: "two", 3: "three"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What ``wording.yaml`` says; see the comments there."""

    groups: dict[str, str]
    subgroups: dict[str, str]
    no_article: frozenset[str]
    the: frozenset[str]
    a: frozenset[str]
    an: frozenset[str]
    plurals: dict[str, str]
    singular: frozenset[str]
    signs: frozenset[str]
    inner_nouns: frozenset[str]
    phrases: dict[str, str]


def load_wording(path: Path = WORDING_FILE) -> Wording:
    """Read the wording."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("no_article", "the", "a", "an", "singular", "signs", "inner_nouns"):
        raw[key] = frozenset(raw[key])
    return Wording(**raw)


def alt_texts(concept: Concept) -> list[str]:
    """Raw captions, the name first: name; name and tags; tags alone, in one or two halves.

    Tags that only repeat the name are dropped; so are repeated captions.
    """
    tags = [tag for tag in concept.tags if tag != concept.name]
    half = (len(tags) + 1) // 2 if len(tags) >= 4 else len(tags)
    lists = [[concept.name], [concept.name, *tags], tags[:half], tags[half:]]
    return list(dict.fromkeys(", ".join(words) for words in lists if words))


def descriptions(concept: Concept, *, wording: Wording) -> list[str]:
    """Two or three sentences that say what is drawn and what kind of thing it is.

    Raises:
        DataError: the group or subgroup has no wording.
    """
    phrase = noun_phrase(concept, wording=wording)
    kind = _worded(wording.subgroups, key=concept.subgroup_key)
    group = _worded(wording.groups, key=concept.group_key)
    if kind == phrase:
        return [f"a picture of {phrase} among {group}", f"{phrase}, drawn as an emoji"]
    return [
        f"a picture of {phrase}, {kind} among {group}",
        f"a drawing that shows {phrase}, {kind}",
        f"{phrase}, drawn as an emoji from {group}",
    ]


def noun_phrase(concept: Concept, *, wording: Wording) -> str:
    """Turn a name into a phrase that can stand in a sentence: ``man: bald`` becomes ``a bald man``."""
    name = concept.name
    if name in wording.phrases:
        return wording.phrases[name]
    if name in wording.signs:
        return with_article(f"{name} sign", wording=wording)
    if note := _NOTE.match(name):
        return f"{with_article(note['name'], wording=wording)} for a {note['note']}"
    if concept.subgroup_key == "zodiac":
        return f"the zodiac sign {name}"
    if _CLOCK.search(name):
        return f"a clock that shows {name}"
    if ": " in name:
        head, detail = name.split(": ", maxsplit=1)
        return _qualified(head, detail=detail, wording=wording)
    return with_article(name, wording=wording)


def with_article(name: str, *, wording: Wording) -> str:
    """Put ``a``, ``an``, ``the`` or nothing before a name, nothing before plurals and mass nouns."""
    inner = _with_inner_articles(name, wording=wording)
    if name in wording.no_article or _is_plural(name, wording=wording):
        return inner
    return f"{'the' if name in wording.the else _indefinite(name, wording=wording)} {inner}"


def _indefinite(name: str, *, wording: Wording) -> str:
    first = name.split(maxsplit=1)[0]
    vowel = first in wording.an or (first[0].lower() in "aeiou" and first not in wording.a)
    return "an" if vowel else "a"


def _with_inner_articles(name: str, *, wording: Wording) -> str:
    nouns = "|".join(sorted(map(re.escape, wording.inner_nouns), key=len, reverse=True))
    return re.sub(
        rf"\b({_BEFORE_NOUN}) ({nouns})(?![\w-])",
        lambda match: f"{match[1]} {_indefinite(match[2], wording=wording)} {match[2]}",
        name,
    )


def _is_plural(name: str, *, wording: Wording) -> bool:
    person = _PERSON.match(name)
    head = person["person"] if person else _HEAD_ENDS.split(name, maxsplit=1)[0]
    last = head.split()[-1]
    if last in wording.plurals.values():
        return True
    return last.endswith("s") and not last.endswith(("ss", "us", "is", "’s")) and last not in wording.singular


def _qualified(head: str, *, detail: str, wording: Wording) -> str:
    if head == "keycap":
        return f"the keycap {detail}"
    if head in {"family", "kiss"}:
        return f"a {head} of {_people(detail.split(', '), wording=wording)}"
    if "," in detail:
        return f"{with_article(head, wording=wording)}, {_people(detail.split(', '), wording=wording)}"
    if detail == "facing right":
        return f"{with_article(head, wording=wording)} facing right"
    if detail == "bald":
        return f"a bald {head}"
    return f"{with_article(head, wording=wording)} with {detail if detail.endswith('hair') else f'a {detail}'}"


def _people(people: list[str], *, wording: Wording) -> str:
    counted = [
        with_article(person, wording=wording) if count == 1 else f"{_NUMBERS[count]} {wording.plurals[person]}"
        for person, count in Counter(people).items()
    ]
    return counted[0] if len(counted) == 1 else f"{', '.join(counted[:-1])} and {counted[-1]}"


def _worded(table: dict[str, str], *, key: str) -> str:
    if key not in table:
        raise DataError(f"Category {key!r} has no wording; {WORDING_FILE.name} must name every one.")
    return table[key]
