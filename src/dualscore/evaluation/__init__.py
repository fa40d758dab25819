"""Measures a trained model: every estimator of its likelihood, the checks, evaluation.json."""

from dualscore.evaluation.evaluate_checkpoint import evaluate
from dualscore.evaluation.evaluation_report import is_complete

__all__ = ["evaluate", "is_complete"]
