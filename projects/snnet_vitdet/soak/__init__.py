"""Trainings and sweeps that are killed, damaged and resumed, and compared with undisturbed ones."""

from .comparison import differences
from .plans import PHASES, Plan, plan_round
from .rounds import Happened, Reference, Round, Setting, make_reference
from .soak import Soak
from .tally import Tally

__all__ = [
    "PHASES",
    "Happened",
    "Plan",
    "Reference",
    "Round",
    "Setting",
    "Soak",
    "Tally",
    "differences",
    "make_reference",
    "plan_round",
]
