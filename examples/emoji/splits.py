"""Splitting concepts into train, validation and unseen, so that no concept or drawing lies in two.

Concepts that differ only in gender, age or direction ("cook", "man cook", "woman cook"), and those
that some artist drew as one and the same picture, form a group. A hash of the group decides.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from examples.emoji.catalog import Concept

Part = Literal["train", "validation", "unseen"]

TRAIN_SHARE = 0.70
VALIDATION_SHARE = 0.15
DESCRIBED_SHARE = 0.5

_JOINER = "-200d-"
_PERSON, _CHILD = "1f9d1", "1f9d2"
_SIGNS = frozenset({"2640", "2642", "27a1"})  # female, male, facing right
_PEOPLE = {
    "1f468": _PERSON,  # man
    "1f469": _PERSON,  # woman
    "1f466": _CHILD,  # boy
    "1f467": _CHILD,  # girl
    "1f474": "1f9d3",  # old man, older person
    "1f475": "1f9d3",  # old woman
    "1f57a": "1f483",  # man dancing, woman dancing
    "1f930": "1fac4",  # pregnant woman, person
    "1fac3": "1fac4",  # pregnant man
    "1f46b": f"{_PERSON}{_JOINER}1f91d{_JOINER}{_PERSON}",  # holding hands: woman and man
    "1f46c": f"{_PERSON}{_JOINER}1f91d{_JOINER}{_PERSON}",  # men
    "1f46d": f"{_PERSON}{_JOINER}1f91d{_JOINER}{_PERSON}",  # women
    "1f48f": f"{_PERSON}{_JOINER}2764{_JOINER}1f48b{_JOINER}{_PERSON}",  # kiss
    "1f491": f"{_PERSON}{_JOINER}2764{_JOINER}{_PERSON}",  # couple with heart
}


def neutral_key(key: str) -> str:
    """The code points of a concept without gender, boy-or-girl and direction."""
    return _JOINER.join(_PEOPLE.get(part, part) for part in key.split(_JOINER) if part not in _SIGNS)


def group_concepts(concepts: Iterable[Concept], *, pictures: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Put together what must not be split.

    Args:
        concepts: all of them.
        pictures: concept keys that share one picture, by anything that names the picture.

    Returns:
        Group key by concept key; a group is named by the first of its concepts.
    """
    parent: dict[str, str] = {concept.key: concept.key for concept in concepts}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    together: dict[str, set[str]] = defaultdict(set)
    for key in parent:
        together[f"neutral {neutral_key(key)}"].add(key)
    for name, keys in pictures.items():
        together[f"picture {name}"].update(keys)
    for keys in together.values():
        roots = {root(key) for key in keys}
        parent.update(dict.fromkeys(roots, min(roots, default="")))
    return {key: root(key) for key in parent}


def shared_pictures(folders: Iterable[Path]) -> dict[str, set[str]]:
    """Concept keys by content hash, over all pictures ``<folder>/<key>.png``."""
    keys: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        for path in sorted(folder.glob("*.png")):
            keys[hashlib.sha256(path.read_bytes()).hexdigest()].add(path.stem)
    return dict(keys)


def part_of(group_key: str) -> Part:
    """Which part a group belongs to: 70 % train, 15 % validation, 15 % unseen, the same on every machine."""
    draw = _draw("split", group_key)
    if draw < TRAIN_SHARE:
        return "train"
    return "validation" if draw < TRAIN_SHARE + VALIDATION_SHARE else "unseen"


def is_described(concept_key: str) -> bool:
    """Whether a training concept is in the half that has the better captions."""
    return _draw("descriptions", concept_key) < DESCRIBED_SHARE


def _draw(purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{purpose}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
