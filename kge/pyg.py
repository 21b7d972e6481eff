"""In from PyTorch Geometric, and out to it: HeteroData, and the models of `torch_geometric.nn.kge`.

PyG keeps one entity table and one relation table a model, as FB15k-237 and its like have one entity type:

    TransE      ours by "l1" or "l2" (p_norm); PyG divides entity rows by their length in each score, done on the way in
    DistMult    the same numbers
    ComplEx     real and imaginary parts in two tables; here they are the two halves of a row
    RotatE      likewise, and one angle a coordinate; ours by "l2", and PyG's margin is a constant of the score
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch_geometric.nn.kge import ComplEx as PygComplEx
from torch_geometric.nn.kge import DistMult as PygDistMult
from torch_geometric.nn.kge import KGEModel
from torch_geometric.nn.kge import RotatE as PygRotatE
from torch_geometric.nn.kge import TransE as PygTransE

from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.models.complex import ComplEx
from multifacet.kge.models.distmult import DistMult
from multifacet.kge.models.model import Model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.models.rotate import RotatE
from multifacet.kge.models.transe import TransE
from multifacet.kge.models.transr import TransR
from multifacet.kge.models.transra import TransRA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["from_pyg", "to_pyg"]

_ENTITY = "entity"


def from_pyg(model: KGEModel, relation_names: Sequence[str] | None = None) -> LinkPredictor:
    """Take over a model of PyG.

    Args:
        model: TransE (of p_norm 1 or 2), DistMult, ComplEx or RotatE; copied.
        relation_names: names of its relations, in their order; None for their numbers.

    Returns:
        Its scores, but for RotatE's margin, with one node type, "entity".

    Raises:
        TypeError: if it is no such model.
        ValueError: if its p_norm is another, or the names are not as many as its relations.
    """
    names = tuple(relation_names) if relation_names is not None else tuple(map(str, range(model.num_relations)))
    if len(names) != model.num_relations:
        raise ValueError(f"the model has {model.num_relations} relations, got {len(names)} names")
    entities, relations = model.node_emb.weight.detach(), model.rel_emb.weight.detach()
    own: Model
    if isinstance(model, PygTransE):
        if model.p_norm not in {1.0, 2.0}:
            raise ValueError(f"TransE compares by p_norm 1 or 2 here, got {model.p_norm}")
        own = TransE(entities.shape[1], "l1" if model.p_norm == 1.0 else "l2")
        entities = torch.nn.functional.normalize(entities, p=model.p_norm, dim=-1)
    elif isinstance(model, PygDistMult):
        own = DistMult(entities.shape[1])
    elif isinstance(model, PygComplEx):
        entities = torch.cat([entities, model.node_emb_im.weight.detach()], dim=1)
        relations = torch.cat([relations, model.rel_emb_im.weight.detach()], dim=1)
        own = ComplEx(entities.shape[1])
    elif isinstance(model, PygRotatE):
        entities = torch.cat([entities, model.node_emb_im.weight.detach()], dim=1)
        own = RotatE(entities.shape[1], "l2")
    else:
        raise TypeError(f"expected PyG's TransE, DistMult, ComplEx or RotatE, got {type(model).__name__}")
    parameters = RelationParameters(own, names, reciprocal=False, generator=torch.Generator().manual_seed(0))
    parameters.table.copy_(relations)
    return LinkPredictor(
        model=own, vectors={_ENTITY: entities.clone()}, relations=parameters, ends=dict.fromkeys(names, (_ENTITY, _ENTITY))
    )


def to_pyg(predictor: LinkPredictor) -> KGEModel:
    """Give a model of PyG with the same scores, but for RotatE's margin.

    Args:
        predictor: TransE by the distances l1 or l2 whose rows have length 1, DistMult, ComplEx, or RotatE by l2; of one
            node type, without reciprocal relations.

    Raises:
        ValueError: if PyG has no such model.
    """
    model, relations = predictor.model, predictor.relations
    if len(predictor.vectors) != 1 or relations.reciprocal:
        raise ValueError(
            f"PyG's models have one node type and no reciprocal relations, got {sorted(predictor.vectors)}, "
            f"reciprocal={relations.reciprocal}"
        )
    (entities,) = predictor.vectors.values()
    num_relations = len(relations.names)
    result: KGEModel
    if isinstance(model, TransE) and not isinstance(model, TransR | TransRA) and model.distance != "squared":
        p_norm = 1.0 if model.distance == "l1" else 2.0
        lengths = entities.norm(p=p_norm, dim=-1)
        if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4):
            raise ValueError(
                "PyG's TransE scores rows of length 1 only; these have other lengths, and would score otherwise there"
            )
        result = PygTransE(len(entities), num_relations, entities.shape[1], p_norm=p_norm)
    elif isinstance(model, DistMult):
        result = PygDistMult(len(entities), num_relations, entities.shape[1])
    elif isinstance(model, ComplEx):
        result = PygComplEx(len(entities), num_relations, entities.shape[1] // 2)
    elif isinstance(model, RotatE) and model.distance == "l2":
        result = PygRotatE(len(entities), num_relations, entities.shape[1] // 2)
    else:
        raise ValueError(f"PyG has no model that scores as {model} does")
    with torch.no_grad():
        _fill(result, "node_emb", entities)
        _fill(result, "rel_emb", relations.table)
    return result


def _fill(model: KGEModel, name: str, rows: Tensor) -> None:
    imaginary = getattr(model, f"{name}_im", None)
    real = getattr(model, name)
    if imaginary is None:
        real.weight.copy_(rows)
    else:
        real.weight.copy_(rows[:, : rows.shape[1] // 2])
        imaginary.weight.copy_(rows[:, rows.shape[1] // 2 :])
