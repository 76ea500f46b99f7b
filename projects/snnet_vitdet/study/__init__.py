"""Trainings of one proxy in many variants, with what each gains and costs."""

from .cost import training_cost
from .runs import Runner, Study
from .scores import Scores, paired, scores_of
from .variants import PAPER, VARIANTS, Variant

__all__ = [
    "PAPER",
    "VARIANTS",
    "Runner",
    "Scores",
    "Study",
    "Variant",
    "paired",
    "scores_of",
    "training_cost",
]
