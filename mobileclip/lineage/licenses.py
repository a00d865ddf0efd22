"""What licenses allow, and which one binds a thing made from many: the most restrictive, with its reason.

A classification for an engineer's gate, not legal advice. A name that is not in the table is `unknown`: it is never
taken for permission.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


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
    parts = [_balanced(part.strip()) for part in re.split(r" AND | OR ", license)]
    return list(dict.fromkeys(part for part in parts if part)) or ["unknown"]


def text(name: str) -> Text | None:
    """Where one license can be read, by its SPDX identifier or known name; None where that is not known."""
    key = re.sub(r"-(only|or-later)$", "", name.partition(" WITH ")[0].strip().lower().replace(" ", "-"))
    if found := _CREATIVE_COMMONS.fullmatch(key):
        return Text(f"https://creativecommons.org/licenses/{found[1]}/{found[2]}/")
    return _TEXTS.get(key)


def classify(license: str) -> Terms:
    """Terms of an SPDX identifier, an SPDX expression (`AND`: the strictest, `OR`: the freest) or a known name."""
    text = license.strip().strip("()").lower()
    for word, choose in ((" and ", max), (" or ", min)):
        if word in text:
            return choose(classify(part) for part in text.split(word))
    name = text.split(" with ")[0].replace(" ", "-")
    if _RESEARCH_ONLY.search(name):
        return Terms.RESEARCH_ONLY
    if _SHARE_ALIKE.match(name):
        return Terms.SHARE_ALIKE
    return Terms.PERMISSIVE if _PERMISSIVE.match(name) else Terms.UNKNOWN


def _balanced(part: str) -> str:
    """Without the parentheses that an expression left open."""
    extra = part.count("(") - part.count(")")
    return part[extra:].strip() if extra > 0 and part.startswith("(" * extra) else part[: len(part) + min(extra, 0)]


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
