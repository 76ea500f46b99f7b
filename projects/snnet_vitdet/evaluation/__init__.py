"""Evaluating the stitches of a trained model: the sweep, its table, and several sweeps compared."""

from .comparison import Candidate, Frontier, common_range, equal_cost_budgets, same_stitches
from .provenance import provenance_of
from .results import (
    BASELINE,
    METRICS,
    SCORES,
    TASKS,
    StitchResult,
    best_row,
    comparable,
    has_value,
    num_images,
    on_frontier,
    pareto_front,
)
from .score_curves import ScoreCurve
from .scoring import CocoScorer, evaluators_of
from .sweep import evaluate_stitch, sweep, two_stage_sweep
from .table import LATENCY_FILE, MEASURED_CSV, StitchEntry, StitchTable
from .table_text import format_table

__all__ = [
    "BASELINE",
    "LATENCY_FILE",
    "MEASURED_CSV",
    "METRICS",
    "SCORES",
    "TASKS",
    "Candidate",
    "CocoScorer",
    "Frontier",
    "ScoreCurve",
    "StitchEntry",
    "StitchResult",
    "StitchTable",
    "best_row",
    "common_range",
    "comparable",
    "equal_cost_budgets",
    "evaluate_stitch",
    "evaluators_of",
    "format_table",
    "has_value",
    "num_images",
    "on_frontier",
    "pareto_front",
    "provenance_of",
    "same_stitches",
    "sweep",
    "two_stage_sweep",
]
