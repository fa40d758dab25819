"""Studies of learning: variants of one experiment, run in turn, compared in a table and a plot."""

from dualscore.study.plan import Study, load_study
from dualscore.study.run import run_study

__all__ = ["Study", "load_study", "run_study"]
