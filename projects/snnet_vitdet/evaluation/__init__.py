"""Evaluating the stitches of a trained model: the sweep, its table, and several sweeps compared."""

from .comparison import Candidate, Frontier, common_range, equal_cost_budgets, same_stitches
from .provenance import provenance_of
from .results import BASELINE, StitchResult, format_table, pareto_front
from .score_curves import ScoreCurve
from .scoring import CocoScorer, evaluators_of
from .sweep import evaluate_stitch, sweep, two_stage_sweep
from .table import LATENCY_FILE, MEASURED_CSV, StitchTable

__all__ = [
    "BASELINE",
    "LATENCY_FILE",
    "MEASURED_CSV",
    "Candidate",
    "CocoScorer",
    "Frontier",
    "ScoreCurve",
    "StitchResult",
    "StitchTable",
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
