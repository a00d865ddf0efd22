"""A key that cannot work, as a sentence: key, got, want, and what was probably meant."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One key that cannot work with the others, the data or the machine.

    Attributes:
        key: Dotted name.
        got: Its value, as shown.
        want: What would work.
        nearest: The alternative that was probably meant; empty = none is near.
    """

    key: str
    got: str
    want: str
    nearest: str = ""

    def __str__(self) -> str:
        """One sentence."""
        hint = f" (nearest: '{self.nearest}')" if self.nearest else ""
        return f"{self.key}: got {self.got}, want {self.want}{hint}."


def unknown(key: str, got: str, known: Iterable[str], what: str) -> Problem:
    """A name that is none of those there are."""
    names = list(known)
    near = difflib.get_close_matches(got, names, n=1)
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return Problem(key, f"'{got}'", f"{what}: {shown or 'there is none'}", near[0] if near else "")
