"""All checks in one list, in the order of the chain."""

from collections.abc import Collection

from mobileclip.config import STAGES, Params
from mobileclip.preflight import data, machine, models, sections
from mobileclip.preflight.facts import Facts
from mobileclip.preflight.problem import Problem, of_stages


def check(
    params: Params,
    *,
    facts: Facts | None = None,
    towers: str = "",
    root: str = "",
    stages: Collection[str] = STAGES,
) -> list[Problem]:
    """Everything that cannot work, without running any of it.

    Args:
        params: The whole chain's.
        facts: Of the prepared dataset; None = not prepared yet, the data are not checked.
        towers: Folder with pretrained towers; empty = none.
        root: Where the run writes, for its disk; empty = the disk is not checked.
        stages: Those that will run; the problems of others are left out.

    Returns:
        One problem per key, in the order of the chain.
    """
    found = [
        *sections.check(params),
        *models.check(params, towers=towers),
        *machine.check(params, facts=facts, root=root),
        *(data.check(params, facts) if facts is not None else ()),
    ]
    return of_stages(found, stages)
