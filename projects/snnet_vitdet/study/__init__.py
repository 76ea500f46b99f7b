"""Trainings of one proxy in many variants, with what each gains and costs."""

from .cost import training_cost
from .runs import CONFIGS, Runner, Study
from .scores import Scores, paired, scores_of
from .table import StudyTable
from .variants import ALONE, PAPER, VARIANTS, Variant

__all__ = [
    "ALONE",
    "CONFIGS",
    "PAPER",
    "VARIANTS",
    "Runner",
    "Scores",
    "Study",
    "StudyTable",
    "Variant",
    "paired",
    "scores_of",
    "training_cost",
]
