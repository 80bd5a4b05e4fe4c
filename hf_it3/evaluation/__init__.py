"""Robustness evaluation: does adaptation help, under which shifts, and when not?"""

from .conditions import Condition, parse_corruptions, parse_severities
from .execution import EvaluationInterrupted
from .methods import DEFAULT_METHODS, Method
from .model_index import model_index_entries
from .results import RobustnessResults
from .robustness import evaluate_robustness


__all__ = [
    "DEFAULT_METHODS",
    "Condition",
    "EvaluationInterrupted",
    "Method",
    "RobustnessResults",
    "evaluate_robustness",
    "model_index_entries",
    "parse_corruptions",
    "parse_severities",
]
