"""What cannot work, found in seconds and all at once, before anything is trained."""

from mobileclip.preflight.check import check, report
from mobileclip.preflight.facts import Facts, read_facts
from mobileclip.preflight.problem import Problem

__all__ = ["Facts", "Problem", "check", "read_facts", "report"]
