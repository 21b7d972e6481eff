"""Experiments: the paper's claims and its open questions, on real data and on synthetic worlds."""

from pipeline.experiments.catalogue import CATALOGUE
from pipeline.experiments.experiment import Comparison, Experiment, Settings
from pipeline.experiments.run import run_experiment
from pipeline.experiments.source import Source

__all__ = ["CATALOGUE", "Comparison", "Experiment", "Settings", "Source", "run_experiment"]
