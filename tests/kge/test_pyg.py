"""Models of PyG and ours score alike, both ways."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn import kge as pyg

from multifacet.kge.pyg import from_pyg, to_pyg, triples_from_hetero_data

NUM_ENTITIES, NUM_RELATIONS = 11, 3


def build(name: str) -> pyg.KGEModel:
    torch.manual_seed(0)
    options = {"p_norm": 2.0} if name == "TransE" else {}
    return getattr(pyg, name)(NUM_ENTITIES, NUM_RELATIONS, 6, **options)


@pytest.mark.parametrize("name", ["TransE", "DistMult", "ComplEx", "RotatE"])
def test_scores_are_pygs_there_and_back(name: str) -> None:
    model = build(name)
    heads, tails = torch.arange(NUM_ENTITIES), torch.arange(NUM_ENTITIES).roll(3)
    predictor = from_pyg(model, ["a", "b", "c"])
    for number, relation in enumerate(["a", "b", "c"]):
        with torch.no_grad():
            expected = model(heads, torch.full_like(heads, number), tails)
            again = to_pyg(predictor)(heads, torch.full_like(heads, number), tails)
        margin = model.margin if name == "RotatE" else 0.0
        torch.testing.assert_close(predictor.score(relation, heads, tails) + margin, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)


def test_what_pyg_cannot_score_is_refused() -> None:
    predictor = from_pyg(build("TransE"))
    predictor.vectors["entity"].mul_(2.0)
    with pytest.raises(ValueError, match="length 1"):
        to_pyg(predictor)
    with pytest.raises(ValueError, match="names"):
        from_pyg(build("DistMult"), ["a"])


def test_hetero_data_gives_typed_triples() -> None:
    data = HeteroData()
    data["user"].num_nodes, data["pin"].num_nodes = 3, 4
    data["user", "likes", "pin"].edge_index = torch.tensor([[0, 2], [3, 1]])
    data["pin", "likes", "pin"].edge_index = torch.tensor([[1], [2]])
    data["pin", "of", "user"].edge_index = torch.tensor([[3], [2]])
    triples = triples_from_hetero_data(data)
    assert triples.ends == {"user/likes/pin": ("user", "pin"), "pin/likes/pin": ("pin", "pin"), "of": ("pin", "user")}
    assert (triples.heads.tolist(), triples.relations.tolist(), triples.tails.tolist()) == (
        [0, 2, 1, 3],
        [0, 0, 1, 2],
        [3, 1, 2, 2],
    )
    del data["user", "likes", "pin"].edge_index
    with pytest.raises(ValueError, match="edge_index"):
        triples_from_hetero_data(data)
