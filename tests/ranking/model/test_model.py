from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from multifacet.ranking import RankingModel, TableSpec, UpperModel
from multifacet.ranking.export.programs import export_pooling, export_upper
from multifacet.ranking.model.sequence import SequencePooling

NUM_DENSE, DIM = 3, 4
FEATURES = ("user", "pin", "advertiser")
FACETS = ("contrastive", "kge")
SLOTS = [(feature, facet) for facet in FACETS for feature in FEATURES]
RECENT = [("recent_pins", facet) for facet in FACETS]


def make_model(slots: list[tuple[str, str]] = SLOTS) -> RankingModel:
    specs = [
        TableSpec(feature=feature, facet=facet, node_type=feature, num_rows=5 + position, dim=DIM)
        for position, (feature, facet) in enumerate(slots)
    ]
    return RankingModel(specs, UpperModel(num_dense=NUM_DENSE, slots=slots, dim=DIM))


def make_sequence_model(*, separate: bool, num_hashes: int = 1, length: int = 3) -> RankingModel:
    features = (*FEATURES, "recent_pins") if separate else FEATURES
    specs = [
        TableSpec(feature=feature, facet=facet, node_type="pin", num_rows=9, dim=DIM, num_hashes=num_hashes)
        for facet in FACETS
        for feature in features
    ]
    pooling = SequencePooling(FACETS, dim=DIM, length=length, kind="attention", num_heads=1)
    return RankingModel(specs, UpperModel(num_dense=NUM_DENSE, slots=SLOTS + RECENT, dim=DIM), pooling)


def num_recent(*counts: int) -> torch.Tensor:
    return torch.tensor(counts, dtype=torch.int32)


def test_slots_hold_the_row_of_every_table_in_slot_order() -> None:
    model = make_model()
    rows = torch.tensor([[0, 1, 2], [4, 3, 0]], dtype=torch.int32)
    embeddings = model.layout.slots(model.gather(rows), num_recent(0, 0), None)
    for slot, (feature, facet) in enumerate(SLOTS):
        column = rows[:, FEATURES.index(feature)].long()
        assert torch.equal(embeddings[:, slot], model.table(f"{feature}_{facet}")[column])


@pytest.mark.parametrize(("separate", "num_hashes"), list(itertools.product([False, True], [1, 2])))
def test_torchrec_looks_up_what_is_gathered(separate: bool, num_hashes: int) -> None:
    model = make_sequence_model(separate=separate, num_hashes=num_hashes)
    rows = torch.randint(0, 9, (5, model.layout.num_columns), dtype=torch.int32)
    assert model.layout.num_columns == num_hashes * (3 + 3)
    gathered, looked_up = model.gather(rows), model.look_up(rows)
    assert list(gathered) == list(looked_up)
    for feature, block in gathered.items():
        assert torch.equal(block, looked_up[feature])
    dense, counts = torch.randn(5, NUM_DENSE), num_recent(0, 1, 2, 3, 3)
    model.eval()
    assert torch.equal(model(dense, rows, counts), model.score(dense, gathered, counts))


def test_an_id_of_two_hashes_is_the_sum_of_its_rows() -> None:
    spec = TableSpec(feature="pin", facet="kge", node_type="pin", num_rows=7, dim=DIM, num_hashes=2)
    model = RankingModel([spec], UpperModel(num_dense=1, slots=[("pin", "kge")], dim=DIM))
    rows = torch.tensor([[2, 5], [3, 3]], dtype=torch.int32)
    table = model.table("pin_kge")
    slots = model.layout.slots(model.gather(rows), num_recent(0, 0), None)
    torch.testing.assert_close(slots[:, 0], torch.stack([table[2] + table[5], 2 * table[3]]))


@pytest.mark.parametrize("separate", [False, True])
def test_recent_pins_read_the_pins_tables_or_their_own(separate: bool) -> None:
    model = make_sequence_model(separate=separate)
    assert ("recent_pins_kge" in [spec.name for spec in model.specs]) == separate
    assert model.layout.features == ((*FEATURES, "recent_pins") if separate else FEATURES)
    rows = torch.randint(0, 9, (4, model.layout.num_columns), dtype=torch.int32)
    model(torch.randn(4, NUM_DENSE), rows, num_recent(3, 3, 3, 3)).sum().backward()
    column = {"user": 0, "pin": 1, "recent": slice(3, 6) if separate else slice(2, 5)}
    gradient = model.tables.embeddings["recent_pins_kge" if separate else "pin_kge"].weight.grad
    touched = gradient.abs().sum(1) > 0
    expected = torch.zeros(9, dtype=torch.bool)
    expected[rows[:, column["recent"]].reshape(-1).long()] = True
    if not separate:
        expected[rows[:, column["pin"]].long()] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("kind", ["attention", "transformer"])
def test_what_stands_beyond_the_last_recent_pin_changes_nothing(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pooling = SequencePooling(FACETS, dim=DIM, length=5, kind=kind, num_heads=2).eval()
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    rows, candidate, counts = torch.randn(6, 5, 2, DIM), torch.randn(6, 2, DIM), num_recent(0, 1, 2, 3, 4, 5)
    pooled = pooling(rows, counts, candidate)
    assert torch.isfinite(pooled).all()
    wild = rows.clone()
    for example, count in enumerate(counts.tolist()):
        wild[example, count:] = 100
    torch.testing.assert_close(pooling(wild, counts, candidate), pooled)
    assert not torch.allclose(pooling(rows + 1, counts, candidate)[1:], pooled[1:])
    if kind == "attention":
        return  # it is a part of the transformer, which is exported
    torch.export.save(export_pooling(pooling), tmp_path / "pooling.pt2")
    loaded = torch.export.load(tmp_path / "pooling.pt2").module()
    for batch in (slice(0, 1), slice(0, 6)):
        torch.testing.assert_close(loaded(rows[batch], counts[batch], candidate[batch]), pooled[batch])


def test_the_transformer_starts_as_attention_pooling() -> None:
    pooling = SequencePooling(["kge"], dim=DIM, length=3, kind="transformer", num_heads=2)
    rows, candidate = torch.randn(2, 3, 1, DIM), torch.randn(2, 1, DIM)
    expected = pooling.pools[0].pool(rows[:, :, 0], torch.ones(2, 3, dtype=torch.bool), candidate[:, 0])
    torch.testing.assert_close(pooling(rows, num_recent(3, 3), candidate)[:, 0], expected)


def test_candidate_attention_is_a_softmax_of_dots() -> None:
    pool = SequencePooling(["kge"], dim=DIM, length=3, kind="attention", num_heads=1).pools[0]
    for layer in (pool.query, pool.key):
        torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(pool.query.bias)
    rows, candidate = torch.randn(1, 3, DIM), torch.randn(1, DIM)
    scores = torch.cat([rows[0] @ candidate[0] / DIM**0.5, torch.zeros(1)])
    pooled = pool(rows, torch.ones(1, 3, dtype=torch.bool), candidate)
    torch.testing.assert_close(pooled[0], scores.softmax(0)[:3] @ rows[0])


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


@pytest.mark.parametrize("slots", [[("pin", "kge")], []], ids=["no pairs", "no tables"])
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
    with pytest.raises(ValueError, match="0 tables fill the slots"):
        RankingModel([], model.upper)
    with pytest.raises(KeyError, match="no table 'user_other'"):
        model.table("user_other")
    sequence = make_sequence_model(separate=False)
    with pytest.raises(ValueError, match="give num_recent"):
        sequence(torch.zeros(1, NUM_DENSE), torch.zeros((1, 6), dtype=torch.int32))
    with pytest.raises(ValueError, match="recent pins need tables of pin"):
        RankingModel(
            [TableSpec(feature="user", facet="kge", node_type="user", num_rows=2, dim=DIM)], model.upper, sequence.pooling
        )


def test_id_dropout_hides_whole_embeddings_of_single_examples() -> None:
    specs = [
        TableSpec(feature=feature, facet=facet, node_type=feature, num_rows=9, dim=DIM)
        for facet in FACETS
        for feature in FEATURES
    ]
    model = RankingModel(specs, UpperModel(num_dense=NUM_DENSE, slots=SLOTS, dim=DIM), id_dropout=0.25)
    seen: list[torch.Tensor] = []
    model.upper.combination.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dense, rows = torch.randn(4000, NUM_DENSE), torch.randint(0, 9, (4000, len(FEATURES)), dtype=torch.int32)
    torch.manual_seed(3)
    model.train()(dense, rows)
    model.eval()(dense, rows)
    hidden = seen[0] == 0
    assert bool((hidden.all(2) == hidden.any(2)).all())
    torch.testing.assert_close(seen[0][~hidden], seen[1][~hidden] / 0.75)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.01)
    # Slots of an example are hidden each on its own.
    assert (hidden[:, 0, 0] & hidden[:, 1, 0]).float().mean().item() == pytest.approx(0.0625, abs=0.015)
    for slot, (feature, facet) in enumerate(SLOTS):
        assert torch.equal(seen[1][:, slot], model.table(f"{feature}_{facet}")[rows[:, FEATURES.index(feature)].long()])
