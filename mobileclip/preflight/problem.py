"""A key that cannot work, as a sentence: key, got, want, and what was probably meant."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mobileclip.config import STAGES
from mobileclip.errors import ConfigError


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


def of_stages(problems: Iterable[Problem], stages: Collection[str]) -> list[Problem]:
    """Those of some stages, each once, in the order of the chain; what is of no stage comes first."""
    order = {stage: index for index, stage in enumerate(STAGES)}
    found = {str(p): (p.key.split(".")[0], p) for p in problems}
    kept = [(order.get(stage, -1), p) for stage, p in found.values() if stage in stages or stage not in order]
    return [problem for _, problem in sorted(kept, key=lambda pair: pair[0])]


def report(problems: Sequence[Problem]) -> None:
    """Refuse a run with all its problems at once.

    Raises:
        ConfigError: There is one or more; a line each.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise ConfigError(str(problems[0]))
    lines = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigError(f"params: {len(problems)} keys cannot work, nothing was run:\n{lines}")
