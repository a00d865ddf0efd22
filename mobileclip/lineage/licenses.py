"""What licenses allow, and which one binds a thing made from many: the most restrictive, with its reason.

A classification for an engineer's gate, not legal advice. A name that is not in the table is `unknown`: it is never
taken for permission.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Terms(IntEnum):
    """Classes of licenses, from the freest to the most restrictive."""

    PERMISSIVE = 0
    """Use, change and sell; at most a notice."""
    SHARE_ALIKE = 1
    """Selling is allowed; what is made from it may have to carry the same license."""
    UNKNOWN = 2
    """Nothing is known, so nothing is granted."""
    RESEARCH_ONLY = 3
    """No commercial use, or no derivatives."""

    @property
    def label(self) -> str:
        """As it is printed."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Use:
    """One licensed thing that went into a model.

    Attributes:
        stage: Where it came in.
        what: The thing: a data source, a column, a model.
        license: Its license as recorded.
    """

    stage: str
    what: str
    license: str

    @property
    def terms(self) -> Terms:
        """The class of its license."""
        return classify(self.license)


_RESEARCH_ONLY = re.compile(r"(^|[-_ ])nc([-_ ]|$)|non-?commercial|research|academic|(^|-)nd(-|$)|amlr|apple-ascl")
_PERMISSIVE = re.compile(
    r"apache|mit(-0)?$|0?bsd|isc$|cc0|cc-by-\d|cc-pddc|unlicense|zlib|pddl|odc-by|ofl|cdla-permissive|"
    r"public[- ]domain|psf|python-2|wtfpl|unicode|hpnd|libpng"
)
_SHARE_ALIKE = re.compile(r"cc-by-sa|l?gpl|agpl|mpl|epl|odbl|gfdl|cdla-sharing|eupl")


@dataclass(frozen=True)
class Text:
    """Where a license can be read.

    Attributes:
        url: Its canonical address.
        notice: A sentence that it wants repeated wherever the work, or what is made from it, is passed on.
    """

    url: str
    notice: str = ""


_CREATIVE_COMMONS = re.compile(r"cc-(by(?:-nc)?(?:-nd|-sa)?)-(\d\.\d)")
_TEXTS = {
    "0bsd": Text("https://opensource.org/license/0bsd"),
    "agpl-3.0": Text("https://www.gnu.org/licenses/agpl-3.0.html"),
    "apache-2.0": Text("https://www.apache.org/licenses/LICENSE-2.0"),
    "apple-amlr": Text(
        "https://github.com/apple/ml-mobileclip/blob/main/LICENSE_MODELS",
        "Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model License "
        "Agreement.",
    ),
    "apple-ascl": Text("https://github.com/apple/ml-mobileclip/blob/main/LICENSE"),
    "bsd-2-clause": Text("https://opensource.org/license/bsd-2-clause"),
    "bsd-3-clause": Text("https://opensource.org/license/bsd-3-clause"),
    "cc0-1.0": Text("https://creativecommons.org/publicdomain/zero/1.0/"),
    "cdla-permissive-2.0": Text("https://cdla.dev/permissive-2-0/"),
    "cdla-sharing-1.0": Text("https://cdla.dev/sharing-1-0/"),
    "gpl-2.0": Text("https://www.gnu.org/licenses/old-licenses/gpl-2.0.html"),
    "gpl-3.0": Text("https://www.gnu.org/licenses/gpl-3.0.html"),
    "isc": Text("https://opensource.org/license/isc-license-txt"),
    "lgpl-3.0": Text("https://www.gnu.org/licenses/lgpl-3.0.html"),
    "mit": Text("https://opensource.org/license/mit"),
    "mpl-2.0": Text("https://www.mozilla.org/MPL/2.0/"),
    "odbl-1.0": Text("https://opendatacommons.org/licenses/odbl/1-0/"),
    "odc-by-1.0": Text("https://opendatacommons.org/licenses/by/1-0/"),
    "ofl-1.1": Text("https://openfontlicense.org/open-font-license-official-text/"),
    "pddl-1.0": Text("https://opendatacommons.org/licenses/pddl/1-0/"),
    "unicode-3.0": Text("https://www.unicode.org/license.txt"),
    "unlicense": Text("https://unlicense.org/"),
}


def names(license: str) -> list[str]:
    """The licenses of an expression, in its order: `MIT AND (CC0-1.0 OR X)` names three."""

    def all_of(found: Iterable[list[str]]) -> list[str]:
        return [name for part in found for name in part]

    found: list[str] = _fold(license, leaf=lambda name: [name], either=all_of, both=all_of)
    return [name for name in dict.fromkeys(found) if name] or ["unknown"]


def factors(license: str) -> list[str]:
    """What an expression wants all at once: `MIT AND (CC0-1.0 OR X)` has two factors, `MIT OR X` is one."""
    license = _bare(license)
    parts = [license] if len(_operands(license, " OR ")) > 1 else _operands(license, " AND ")
    found = [license] if len(parts) == 1 else [factor for part in parts for factor in factors(part)]
    return [factor for factor in dict.fromkeys(found) if factor]


def together(expressions: Iterable[str]) -> str:
    """The expression of what inherits every one of them: their factors in order, each once; empty of none."""
    found = sorted({factor for one in expressions for factor in factors(one)})
    choices = len(found) > 1  # AND binds closer than OR
    return " AND ".join(f"({one})" if choices and len(_operands(one, " OR ")) > 1 else one for one in found)


def text(name: str) -> Text | None:
    """Where one license can be read, by its SPDX identifier or known name; None where that is not known."""
    key = re.sub(r"-(only|or-later)$", "", name.partition(" WITH ")[0].strip().lower().replace(" ", "-"))
    if found := _CREATIVE_COMMONS.fullmatch(key):
        return Text(f"https://creativecommons.org/licenses/{found[1]}/{found[2]}/")
    return _TEXTS.get(key)


def classify(license: str) -> Terms:
    """Terms of an SPDX identifier, an SPDX expression (`AND`: the strictest, `OR`: the freest) or a known name."""

    def one(name: str) -> Terms:
        # In small letters the operators are somebody's prose, of which the strictest reading holds.
        return max(map(_terms, re.split(r" (?:and|or) ", name.strip("()").lower())))

    terms: Terms = _fold(license, leaf=one, either=min, both=max)
    return terms


def is_allowed(license: str, allowed: Collection[str]) -> bool:
    """Whether a list of licenses covers an expression: all operands of `AND`, one of `OR`; or lists it as it is."""
    return license in allowed or bool(_fold(license, leaf=lambda name: name in allowed, either=any, both=all))


def _fold(
    license: str, *, leaf: Callable[[str], Any], either: Callable[[Any], Any], both: Callable[[Any], Any]
) -> Any:  # fmt: skip
    """What an expression comes to, given what a name does and what `OR` and `AND` make of their operands."""
    license = _bare(license)
    for operator, choose in ((" OR ", either), (" AND ", both)):  # AND binds closer
        parts = _operands(license, operator)
        if len(parts) > 1:
            return choose(_fold(part, leaf=leaf, either=either, both=both) for part in parts)
    return leaf(license)


def _terms(name: str) -> Terms:
    name = name.strip().split(" with ")[0].replace(" ", "-")
    if _RESEARCH_ONLY.search(name):
        return Terms.RESEARCH_ONLY
    if _SHARE_ALIKE.match(name):
        return Terms.SHARE_ALIKE
    return Terms.PERMISSIVE if _PERMISSIVE.match(name) else Terms.UNKNOWN


def _operands(license: str, operator: str) -> list[str]:
    """The parts of an expression between an operator that stands in no parentheses; itself where there is none."""
    parts, depth, start = list[str](), 0, 0
    for found in re.finditer(rf"[()]|{operator}", license):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if found[0] == operator and depth == 0:
            parts.append(license[start : found.start()])
            start = found.end()
    return [part.strip() for part in (*parts, license[start:])]


def _bare(license: str) -> str:
    """Without the parentheses around an expression as a whole; those of a name are part of it."""
    license = license.strip()
    inside = license[1:-1].strip()
    if not (license.startswith("(") and license.endswith(")")) or _closes_early(inside):
        return license
    bare = _bare(inside)
    return bare if any(len(_operands(bare, operator)) > 1 for operator in (" OR ", " AND ")) else license


def _closes_early(inside: str) -> bool:
    """Whether a parenthesis closes that was not opened there."""
    depth = 0
    for sign in inside:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth < 0:
            return True
    return False


def binding(uses: Iterable[Use]) -> tuple[Terms, list[Use]]:
    """The most restrictive terms of all, and the things that cause them; `unknown` where nothing is recorded."""
    found = list(uses)
    if not found:
        return Terms.UNKNOWN, []
    strictest = max(use.terms for use in found)
    return strictest, [use for use in found if use.terms == strictest]


def because(reasons: Iterable[Use]) -> str:
    """What causes the binding terms, in words: per license the first thing that has it, and how many more have."""
    by_license: dict[str, list[str]] = {}
    for use in reasons:
        by_license.setdefault(use.license, []).append(use.what)
    more = {name: f" and {len(things) - 1} more" if len(things) > 1 else "" for name, things in by_license.items()}
    parts = [f"{things[0]} ({name}){more[name]}" for name, things in by_license.items()]
    return "; ".join(parts) or "nothing is recorded"


def not_commercial(uses: Iterable[Use]) -> list[Use]:
    """The things that forbid commercial use, or do not show that they allow it."""
    return [use for use in uses if use.terms in {Terms.UNKNOWN, Terms.RESEARCH_ONLY}]
