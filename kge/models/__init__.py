"""Scoring models, one a file and registered by name, the maps they are made of, and the relations' parameters."""

# Each registers itself.
from multifacet.kge.models.complex import ComplEx
from multifacet.kge.models.distmult import DistMult
from multifacet.kge.models.rotate import RotatE
from multifacet.kge.models.transe import TransE
from multifacet.kge.models.transr import TransR
from multifacet.kge.models.transra import TransRA

__all__ = ["ComplEx", "DistMult", "RotatE", "TransE", "TransR", "TransRA"]
