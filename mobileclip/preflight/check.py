"""All checks in one list, in the order of the chain."""

from collections.abc import Collection, Sequence

from mobileclip.config import STAGES, Params
from mobileclip.errors import ConfigError
from mobileclip.preflight import data, machine, models, sections
from mobileclip.preflight.facts import Facts
from mobileclip.preflight.problem import Problem


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
    order = {stage: index for index, stage in enumerate(STAGES)}
    kept = {str(p): p for p in found if p.key.split(".")[0] in stages or p.key.split(".")[0] not in order}
    return sorted(kept.values(), key=lambda problem: order.get(problem.key.split(".")[0], -1))


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
