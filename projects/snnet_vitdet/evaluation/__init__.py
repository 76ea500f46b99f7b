"""Evaluating the stitches of a trained model: the sweep, its results and their Pareto frontier."""

from .comparison import Candidate, common_range, equal_cost_budgets, same_stitches
from .evaluators import evaluators_of
from .frontier import Frontier
from .pareto import pareto_front
from .provenance import provenance_of
from .results import ResultsTable, StitchResult
from .results_text import format_table
from .score_curves import ScoreCurve, ScoreCurves
from .scoring import CocoScorer
from .sweep import BASELINE, evaluate_stitch, sweep
from .two_stage import two_stage_sweep

__all__ = [
    "BASELINE",
    "Candidate",
    "CocoScorer",
    "Frontier",
    "ResultsTable",
    "ScoreCurve",
    "ScoreCurves",
    "StitchResult",
    "common_range",
    "equal_cost_budgets",
    "evaluate_stitch",
    "evaluators_of",
    "format_table",
    "pareto_front",
    "provenance_of",
    "same_stitches",
    "sweep",
    "two_stage_sweep",
]
