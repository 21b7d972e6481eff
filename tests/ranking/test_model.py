from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrec import KeyedJaggedTensor

from ranking import RankingModel, TableSpec, UpperModel
from ranking.export import export_upper

NUM_DENSE, DIM = 3, 4
FEATURES = ("user", "pin", "advertiser")
SLOTS = [(feature, facet) for facet in ("contrastive", "kge") for feature in FEATURES]


def make_model(slots: list[tuple[str, str]] = SLOTS) -> RankingModel:
    specs = [
        TableSpec(feature=feature, facet=facet, node_type=feature, num_rows=5 + position, dim=DIM)
        for position, (feature, facet) in enumerate(slots)
    ]
    return RankingModel(specs, UpperModel(num_dense=NUM_DENSE, slots=slots, dim=DIM))


def test_lookup_gives_the_row_of_every_table_in_slot_order() -> None:
    model = make_model()
    rows = torch.tensor([[0, 1, 2], [4, 3, 0]], dtype=torch.int32)
    looked_up = model.lookup(rows)
    for slot, (feature, facet) in enumerate(SLOTS):
        column = rows[:, FEATURES.index(feature)].long()
        assert torch.equal(looked_up[:, slot], model.table(f"{feature}_{facet}")[column])


def test_bags_of_several_rows_are_summed() -> None:
    model = make_model([("user", "kge"), ("pin", "kge")])
    bags = KeyedJaggedTensor(keys=["user", "pin"], values=torch.tensor([1, 0, 2, 3, 3]), lengths=torch.tensor([1, 1, 2, 1]))
    looked_up = model.lookup(bags)
    pins = model.table("pin_kge")
    torch.testing.assert_close(looked_up[:, 1], torch.stack([pins[2] + pins[3], pins[3]]))
    scores = model(torch.zeros(2, NUM_DENSE), bags)
    assert scores.shape == (2, 2)


def test_the_upper_model_sees_each_facets_own_products() -> None:
    upper = make_model().upper
    inputs: dict[str, torch.Tensor] = {}
    for name in ("rows", "products", "dots"):
        getattr(upper, name).register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0]))
    embeddings = torch.randn(6, len(SLOTS), DIM)
    upper(torch.randn(6, NUM_DENSE), embeddings)
    user_c, pin_c, advertiser_c, user_k, pin_k, advertiser_k = embeddings.unbind(1)
    products = [user_c * pin_c, user_c * advertiser_c, user_k * pin_k, user_k * advertiser_k]
    torch.testing.assert_close(inputs["products"], torch.cat(products, 1))
    torch.testing.assert_close(inputs["dots"], torch.stack([p.sum(1) for p in products], 1))
    torch.testing.assert_close(inputs["rows"], embeddings.flatten(1))


def test_dense_features_are_standardised_inside() -> None:
    torch.manual_seed(0)
    upper = UpperModel(num_dense=NUM_DENSE, slots=[], dim=DIM).eval()
    dense = torch.randn(50, NUM_DENSE)
    before = upper(dense, torch.zeros(50, 0, DIM))
    moved = dense * torch.tensor([3.0, 0.1, 20.0]) + 7
    moved[:, 2] = dense[:, 2]
    standardised = (moved - moved.mean(0)) / moved.std(0)
    expected = upper(standardised, torch.zeros(50, 0, DIM))
    upper.fit_normalisation(moved)
    torch.testing.assert_close(upper(moved, torch.zeros(50, 0, DIM)), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected)


def test_a_constant_dense_feature_does_no_harm() -> None:
    upper = UpperModel(num_dense=1, slots=[], dim=DIM)
    upper.fit_normalisation(torch.full((10, 1), 3.0))
    assert torch.isfinite(upper(torch.full((4, 1), 3.0), torch.zeros(4, 0, DIM))).all()


@pytest.mark.parametrize("slots", [SLOTS, [("pin", "kge")], []], ids=["all", "no pairs", "no tables"])
def test_the_exported_upper_model_scores_batches_of_any_size(slots: list[tuple[str, str]], tmp_path: Path) -> None:
    upper = make_model(slots).upper
    upper(torch.randn(32, NUM_DENSE), torch.randn(32, len(slots), DIM))  # running statistics other than 0 and 1
    torch.export.save(export_upper(upper), tmp_path / "upper.pt2")
    loaded = torch.export.load(tmp_path / "upper.pt2").module()
    for num_examples in (1, 2, 7, 300):
        dense, embeddings = torch.randn(num_examples, NUM_DENSE), torch.randn(num_examples, len(slots), DIM)
        torch.testing.assert_close(loaded(dense, embeddings), upper(dense, embeddings))


def test_misfitting_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="may occur once"):
        UpperModel(num_dense=1, slots=[("user", "kge")] * 2, dim=DIM)
    model = make_model([("user", "kge")])
    with pytest.raises(ValueError, match="0 tables for an upper model of 1 slots"):
        RankingModel([], model.upper)
    with pytest.raises(KeyError, match="no table 'user_other'"):
        model.table("user_other")
