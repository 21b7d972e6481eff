"""Facet combinations, interactions and heads: against their formulas, exportable, and without dead weights."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchrec.modules.crossnet import LowRankCrossNet

from multifacet.ranking import UpperModel
from multifacet.ranking.export.programs import export_upper
from multifacet.ranking.model.combination import AttendFacets, Combination, GateFacets, SumFacets, make_combination
from multifacet.ranking.model.heads import Heads, make_heads
from multifacet.ranking.model.interactions.crossing import CrossInteraction
from multifacet.ranking.model.interactions.masknet import MaskBlock
from multifacet.ranking.model.interactions.tokens import DotInteraction
from multifacet.ranking.model.upper import Interaction
from multifacet.ranking.slots import Slot, facing_pairs
from multifacet.ranking.training.objective import product_losses, training_loss

DIM, NUM_DENSE = 4, 3
FEATURES, FACETS = ("user", "pin", "advertiser"), ("contrastive", "kge")
SLOTS = [Slot(feature, facet) for facet in FACETS for feature in FEATURES]
SMALL: dict[str, Any] = {"num_dense": NUM_DENSE, "slots": SLOTS, "dim": DIM, "projected": 6, "cross_rank": 3, "hidden": (8, 5)}
PARTS = list(zip(get_args(Combination), get_args(Interaction), ("shared_bottom", "mmoe", "esmm", "esmm_dense"), strict=True))


def make_upper(combination: Any, interaction: Any, heads: Any) -> UpperModel:
    torch.manual_seed(0)
    return UpperModel(**SMALL, combination=combination, interaction=interaction, heads=heads)


@pytest.mark.parametrize("interaction", get_args(Interaction))
@pytest.mark.parametrize(("combination", "heads"), [*zip(get_args(Combination), get_args(Heads), strict=True)])
def test_no_weight_is_dead(combination: Any, interaction: Any, heads: Any) -> None:
    upper = make_upper(combination, interaction, heads)
    dense, embeddings, labels = torch.randn(64, NUM_DENSE), torch.randn(64, len(SLOTS), DIM), (torch.rand(3, 64) < 0.5).float()
    training_loss(upper(dense, embeddings), *labels, heads=heads, cvr_weight=1.0).backward()
    dead = [name for name, weight in upper.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize(("combination", "interaction", "heads"), PARTS, ids=[interaction for _, interaction, _ in PARTS])
def test_every_part_scores_as_its_export_does(combination: Any, interaction: Any, heads: Any) -> None:
    upper = make_upper(combination, interaction, heads)
    dense, embeddings = torch.randn(64, NUM_DENSE), torch.randn(64, len(SLOTS), DIM)
    upper(dense, embeddings)  # running statistics other than 0 and 1
    exported = export_upper(upper).module()
    for size in (1, 64):
        torch.testing.assert_close(exported(dense[:size], embeddings[:size]), upper(dense[:size], embeddings[:size]))


@pytest.mark.parametrize("interaction", get_args(Interaction))
def test_a_ranker_without_tables_has_the_same_uppers(interaction: Any) -> None:
    upper = UpperModel(**SMALL | {"slots": ()}, interaction=interaction)
    assert upper(torch.randn(5, NUM_DENSE), torch.zeros(5, 0, DIM)).shape == (5, 2)


def test_a_user_faces_the_candidate_within_a_facet_only() -> None:
    names = [(SLOTS[left], SLOTS[right]) for left, right in facing_pairs(SLOTS)]
    assert names == [(("user", facet), (other, facet)) for facet in FACETS for other in ("pin", "advertiser")]


def test_flat_inputs_are_rows_products_and_dots() -> None:
    flat = UpperModel(**SMALL).interaction.inputs
    inputs: dict[str, torch.Tensor] = {}
    for name in ("rows", "products", "dots"):
        getattr(flat, name).register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0]))
    embeddings = torch.randn(6, len(SLOTS), DIM)
    flat(torch.randn(6, NUM_DENSE), embeddings)
    user_c, pin_c, advertiser_c, user_k, pin_k, advertiser_k = embeddings.unbind(1)
    products = [user_c * pin_c, user_c * advertiser_c, user_k * pin_k, user_k * advertiser_k]
    torch.testing.assert_close(inputs["products"], torch.cat(products, 1))
    torch.testing.assert_close(inputs["dots"], torch.stack([p.sum(1) for p in products], 1))
    torch.testing.assert_close(inputs["rows"], embeddings.flatten(1))


def test_sum_adds_a_features_facets() -> None:
    embeddings = torch.randn(5, 6, DIM)
    combined = SumFacets(SLOTS)
    assert [slot.feature for slot in combined.slots] == list(FEATURES)
    torch.testing.assert_close(combined(embeddings), embeddings[:, :3] + embeddings[:, 3:])


def test_gates_are_chosen_by_a_features_own_rows_and_average_them() -> None:
    gating = GateFacets(SLOTS, DIM).eval()
    embeddings = torch.randn(5, 6, DIM)
    weights = gating.weights(embeddings)
    torch.testing.assert_close(weights.sum(1), torch.ones(5, 3))
    expected = weights[:, 0, :, None] * embeddings[:, :3] + weights[:, 1, :, None] * embeddings[:, 3:]
    torch.testing.assert_close(gating(embeddings), expected)
    other = embeddings.clone()
    other[:, [1, 4]] += 1  # the pin's rows
    changed = (gating.weights(other) - weights).abs().sum((0, 1)) > 1e-6
    assert changed.tolist() == [False, True, False]


def test_attention_lets_the_other_features_ask_and_keeps_the_facets() -> None:
    torch.manual_seed(1)
    attention = AttendFacets(SLOTS, DIM, 2).eval()
    embeddings = torch.randn(5, 6, DIM)
    combined = attention(embeddings)
    assert attention.slots == (*SLOTS, *(Slot(feature, "attended") for feature in FEATURES))
    assert torch.equal(combined[:, :6], embeddings)
    weights = attention.weights(embeddings)
    torch.testing.assert_close(weights.sum(1), torch.ones(5, 3, 2))
    # Values start at the identity: each half of the attended row belongs to a head.
    user = torch.einsum("bfh,bfhd->bhd", weights[:, :, 0], embeddings[:, [0, 3]].unflatten(2, (2, -1)))
    torch.testing.assert_close(combined[:, 6], user.flatten(1))
    # Another candidate shifts what is taken of the user, though the user's rows are the same.
    other = embeddings.clone()
    other[:, [1, 4]] += 1
    assert (attention.weights(other)[:, :, 0] - weights[:, :, 0]).abs().max() > 1e-4
    # And a feature does not ask about itself: equal facets share the attention evenly, whatever its rows are.
    same = embeddings.clone()
    same[:, 3] = same[:, 0]
    torch.testing.assert_close(attention.weights(same)[:, :, 0], torch.full((5, 2, 2), 0.5))


@pytest.mark.parametrize("kind", ["gating", "attention"])
def test_the_facet_that_knows_an_id_is_weighed_up(kind: Any) -> None:
    """Half of the users are known to one facet and half to the other, whose rows of them are noise of half the length."""
    torch.manual_seed(0)
    slots = [Slot(feature, facet) for facet in FACETS for feature in ("user", "pin")]
    combination = make_combination(kind, slots, dim=8, num_heads=1)
    optimizer = torch.optim.Adam(combination.parameters(), lr=0.1)

    def draw(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        taste, item, noise = torch.randn(3, size, 8)
        first = torch.rand(size, 1) < 0.5
        rows = [torch.where(first, taste, noise / 2), item, torch.where(first, noise / 2, taste), item]
        return torch.stack(rows, dim=1), (taste * item).sum(1), first[:, 0]

    for _ in range(60):
        rows, affinity, _ = draw(256)
        combined = combination(rows)[:, -2:]
        F.mse_loss((combined[:, 0] * combined[:, 1]).sum(1), affinity).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows, _, first = draw(1000)
    weights = combination.eval().weights(rows).flatten(2)[:, 0, 0].detach()
    assert weights[first].mean() > weights[~first].mean() + 0.4


def test_facets_that_features_do_not_share_are_refused() -> None:
    with pytest.raises(ValueError, match="Use combination 'concat'"):
        make_combination("sum", [Slot("user", "kge"), Slot("pin", "kge"), Slot("pin", "contrastive")], dim=4, num_heads=1)
    with pytest.raises(ValueError, match="does not divide"):
        AttendFacets(SLOTS, DIM, 3)
    with pytest.raises(ValueError, match="there is only"):
        AttendFacets([Slot("user", "kge")], DIM, 1)


def test_cross_layers_are_torchrecs() -> None:
    crossing = CrossInteraction(NUM_DENSE, SLOTS, dim=DIM, projected=6, num_layers=2, rank=3).eval()
    oracle = LowRankCrossNet(crossing.width, num_layers=2, low_rank=3)
    for number, layer in enumerate(crossing.cross):
        oracle.V_kernels[number] = layer.down.weight
        oracle.W_kernels[number] = layer.up.weight
        oracle.bias[number] = layer.up.bias
    dense, embeddings = torch.randn(7, NUM_DENSE), torch.randn(7, 6, DIM)
    torch.testing.assert_close(crossing(dense, embeddings), oracle(crossing.inputs(dense, embeddings)))


def test_dlrm_is_the_dots_of_all_pairs() -> None:
    interaction = DotInteraction(NUM_DENSE, SLOTS, dim=DIM)
    dense, embeddings = torch.randn(7, NUM_DENSE), torch.randn(7, 6, DIM)
    token = interaction.dense(dense)
    tokens = [token, *embeddings.unbind(1)]
    dots = torch.stack([(left * right).sum(1) for left, right in itertools.combinations(tokens, 2)], dim=1)
    met = interaction(dense, embeddings)
    assert met.shape[1] == interaction.width
    torch.testing.assert_close(met, torch.cat([token, dots], dim=1))


def test_a_mask_block_is_its_formula() -> None:
    block = MaskBlock(5, 4, 3)
    guide, current = torch.randn(6, 5), torch.randn(6, 4)
    first, second, linear = block.mask[0], block.mask[2], block.hidden[0]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    mask = F.relu(guide @ first.weight.T + first.bias) @ second.weight.T + second.bias
    expected = F.relu(F.layer_norm((mask * current) @ linear.weight.T, (3,)))
    torch.testing.assert_close(block(guide, current), expected)


def test_experts_are_mixed_by_each_tasks_gate() -> None:
    heads = make_heads("mmoe", 6, (8,), dropout=0.0, num_experts=3)
    features = torch.randn(5, 6)
    for task in range(2):
        weights = heads.gates[task](features).softmax(1)
        mixed = sum(weights[:, [number]] * expert(features) for number, expert in enumerate(heads.experts))
        torch.testing.assert_close(heads(features)[:, task], heads.heads[task](mixed)[:, 0])


def test_the_product_of_two_probabilities_has_its_cross_entropy() -> None:
    logits = torch.cat([torch.randn(50, 2) * 3, torch.tensor([[40.0, 40.0], [-90.0, 5.0], [5.0, -90.0], [90.0, -90.0]])])
    product = torch.sigmoid(logits.double()).prod(1)
    for label, expected in ((1.0, -product.log()), (0.0, -torch.log1p(-product))):
        found = product_losses(logits, torch.full((len(logits),), label))
        assert torch.isfinite(found).all()
        kept = torch.isfinite(expected)
        torch.testing.assert_close(found[kept].double(), expected[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", get_args(Heads))
def test_losses_count_the_conversions_that_are_known(heads: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 2)
    ctr, known = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    cvr = torch.tensor([1.0, 0.0, 0.0, 0.0])
    click, buy = torch.sigmoid(logits).unbind(1)
    loss = training_loss(logits, ctr, cvr, known, heads=heads, cvr_weight=0.5)
    expected = F.binary_cross_entropy(click, ctr)
    if heads in {"esmm", "esmm_dense"}:
        chosen = [0, 2, 3]  # not the click whose conversion is unknown
        expected = expected + 0.5 * F.binary_cross_entropy((click * buy)[chosen], cvr[chosen])
    else:
        expected = expected + 0.5 * F.binary_cross_entropy(buy[[0, 3]], cvr[[0, 3]])
    torch.testing.assert_close(loss, expected)
    nothing = training_loss(logits, ctr, cvr, torch.zeros(4), heads="mmoe", cvr_weight=0.5)
    torch.testing.assert_close(nothing, F.binary_cross_entropy(click, ctr))


def test_with_esmm_dense_conversions_read_no_id() -> None:
    upper = make_upper("concat", "dcn_v2", "esmm_dense").eval()
    dense, embeddings = torch.randn(9, NUM_DENSE), torch.randn(2, 9, len(SLOTS), DIM)
    ctr, cvr = torch.stack([upper(dense, of_ids) for of_ids in embeddings]).unbind(2)
    assert torch.equal(cvr[0], cvr[1])
    assert bool((ctr[0] != ctr[1]).all())
    assert len(cvr[0].unique()) == len(dense)
    with pytest.raises(ValueError, match="no dense features for CVR to read; take esmm"):
        UpperModel(**SMALL | {"num_dense": 0}, heads="esmm_dense")
