"""Experiments: the paper's claims and its open questions, on real data and on synthetic worlds."""

from multifacet.pipeline.experiments.catalogue import CATALOGUE
from multifacet.pipeline.experiments.experiment import Comparison, Experiment, Settings
from multifacet.pipeline.experiments.run import run_experiment
from multifacet.pipeline.experiments.source import Source

__all__ = ["CATALOGUE", "Comparison", "Experiment", "Settings", "Source", "run_experiment"]
