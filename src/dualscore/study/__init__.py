"""Studies of learning: variants of one experiment, run in turn, compared in a table and a plot."""

from dualscore.study.run_variants import run_study
from dualscore.study.variants import Study, load_study

__all__ = ["Study", "load_study", "run_study"]
