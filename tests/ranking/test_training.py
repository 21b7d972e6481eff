from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multifacet.ranking import Arm, Examples, RankingConfig, RankingResult, arm_config, evaluate, train
from multifacet.ranking.evaluation import log_loss
from multifacet.tables import IdMap
from multifacet.tables.configuration import ConfigurationError

from .conftest import DIM, Planted

SMALL: dict[str, Any] = {"dim": DIM, "batch_size": 256, "hidden": (32, 16), "projected": 8, "upper_lr": 5e-3}


def fit(planted: Planted, arm: Arm, **overrides: Any) -> RankingResult:
    config = arm_config(arm, **(SMALL | overrides))
    return train(planted.train, planted.valid, config, snapshots=planted.snapshots)


@pytest.fixture(scope="module")
def results(planted: Planted) -> dict[Arm, RankingResult]:
    arms: tuple[Arm, ...] = ("no_ids", "scratch", "pretrained")
    return {arm: fit(planted, arm) for arm in arms}


def test_pretrained_tables_find_the_planted_preference(planted: Planted, results: dict[Arm, RankingResult]) -> None:
    areas = {
        arm: {task: row["roc_auc"] for task, row in evaluate(result.score(planted.test), planted.test).items()}
        for arm, result in results.items()
    }
    # Each user has ten examples: too few to learn eight elements, so only pretrained rows can tell.
    for task in ("ctr", "cvr"):
        assert areas["pretrained"][task] > areas["scratch"][task] + 0.1
        assert areas["pretrained"][task] > areas["no_ids"][task] + 0.1


def test_scratch_has_tables_of_the_same_shapes(results: dict[Arm, RankingResult]) -> None:
    assert results["scratch"].model.specs == results["pretrained"].model.specs
    assert results["no_ids"].model.specs == ()
    assert [coverage.num_missing for coverage in results["pretrained"].coverage] == [1] * 6
    assert len(results["scratch"].coverage) == 0
    assert len(results["pretrained"].parents) == 2


def test_the_best_weights_are_kept(planted: Planted, results: dict[Arm, RankingResult]) -> None:
    result = results["scratch"]
    losses = [row["valid_ctr_log_loss"] for row in result.history]
    assert losses[-1] > min(losses)
    assert result.metrics["valid_ctr_log_loss"] == min(losses)
    scores = result.score(planted.valid)[:, 0]
    assert log_loss(planted.valid.ctr_label, scores) == pytest.approx(min(losses), abs=1e-6)


def test_the_last_weights_are_kept_where_that_is_asked_for_and_training_goes_on_to_the_end(planted: Planted) -> None:
    last = fit(planted, "scratch", keep="last", max_epochs=6)
    losses = [row["valid_ctr_log_loss"] for row in last.history]
    # It would have stopped long before.
    assert len(losses) == 12
    assert np.argmin(losses) < len(losses) - 3
    assert last.metrics["valid_ctr_log_loss"] == losses[-1]
    assert log_loss(planted.valid.ctr_label, last.score(planted.valid)[:, 0]) == pytest.approx(losses[-1], abs=1e-6)
    with pytest.raises(ConfigurationError, match=r"patience=2 would do nothing .* keep='last'"):
        RankingConfig(keep="last", patience=2)


def test_equal_seeds_give_equal_models_and_leave_the_global_generator_alone(planted: Planted) -> None:
    before = torch.random.get_rng_state()
    first, again = (fit(planted, "pretrained", max_epochs=1) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (first.score(planted.test) == again.score(planted.test)).all()
    other = fit(planted, "pretrained", max_epochs=1, seed=1)
    assert (first.score(planted.test) != other.score(planted.test)).any()


def initial_tables(planted: Planted, arm: Arm) -> Mapping[str, torch.Tensor]:
    frozen = fit(planted, arm, max_epochs=1, freeze_tables=True)
    return {spec.name: frozen.model.table(spec.name) for spec in frozen.model.specs}


def test_only_rows_of_training_examples_move(planted: Planted) -> None:
    initial = initial_tables(planted, "pretrained")
    few = planted.train.take(np.arange(300))
    config = arm_config("pretrained", **SMALL, max_epochs=1)
    result = train(few, planted.valid, config, snapshots=planted.snapshots)
    for spec in result.model.specs:
        used = np.zeros(spec.num_rows, dtype=bool)
        used[result.id_maps[spec.feature].rows(few.ids(spec.feature))] = True
        moved = (result.model.table(spec.name) != initial[spec.name]).any(1).numpy()
        assert (moved == used).all()


def test_frozen_tables_keep_the_snapshots_vectors(planted: Planted) -> None:
    initial = initial_tables(planted, "pretrained")
    vectors = planted.snapshots[1].vectors("pin")
    norm = vectors.square().sum(1).mean().sqrt()
    torch.testing.assert_close(initial["pin_kge"][:-1], vectors / norm)


def test_unknown_conversion_labels_do_not_move_the_model(planted: Planted) -> None:
    config = arm_config("pretrained", **SMALL, max_epochs=1, cvr_weight=1.0)
    nothing_known = replace(planted.train, cvr_label=np.full(len(planted.train), np.nan, dtype=np.float32))
    without = train(nothing_known, planted.valid, config, snapshots=planted.snapshots)
    unweighted = config.model_copy(update={"cvr_weight": 0.0})
    expected = train(planted.train, planted.valid, unweighted, snapshots=planted.snapshots)
    assert (without.score(planted.test)[:, 0] == expected.score(planted.test)[:, 0]).all()


def test_unknown_ids_share_the_out_of_vocabulary_row(planted: Planted, results: dict[Arm, RankingResult]) -> None:
    one = planted.test.take(np.zeros(2, dtype=np.int64))
    strangers = replace(one, user_id=np.array([99_999, 77_777]), pin_id=np.array([5, 6]))
    first, second = results["pretrained"].score(strangers)
    # A matrix product may round two equal rows of a batch in different orders.
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_facets_can_be_pretrained_one_by_one(planted: Planted) -> None:
    result = fit(planted, "pretrained", max_epochs=1, pretrained_facets=("kge",))
    assert {coverage.table for coverage in result.coverage} == {"user_kge", "pin_kge", "advertiser_kge"}
    assert len(result.model.specs) == 6


def test_without_snapshots_the_training_ids_get_rows(planted: Planted) -> None:
    config = arm_config("scratch", **SMALL, max_epochs=1)
    result = train(planted.train, planted.valid, config)
    assert result.id_maps["pin"].num_rows == len(np.unique(planted.train.pin_id)) + 1


def test_id_maps_can_be_given(planted: Planted) -> None:
    maps = {
        feature: IdMap.hashed(16, id_type="int64", seed=position)
        for position, feature in enumerate(("user", "pin", "advertiser"))
    }
    config = arm_config("pretrained", **SMALL, max_epochs=1)
    result = train(planted.train, planted.valid, config, snapshots=planted.snapshots, id_maps=maps)
    assert {spec.num_rows for spec in result.model.specs} == {16}


def test_features_can_be_hashed_by_the_configuration(planted: Planted) -> None:
    fields = {"hash_rows": {"pin": {"rows": 50}, "user": {"rows": 40, "num_hashes": 2}}}
    result = fit(planted, "pretrained", max_epochs=1, **fields)
    kinds = {feature: (id_map.kind, id_map.num_rows, id_map.num_hashes) for feature, id_map in result.id_maps.items()}
    assert kinds == {"user": ("hashed", 40, 2), "pin": ("hashed", 50, 1), "advertiser": ("exact", 6, 1)}
    # All 600 pins of the snapshots, not only those that were trained on.
    assert (result.collisions["pin"].num_ids, result.collisions["pin"].rows_used) == (600, 50)
    with pytest.raises(ConfigurationError, match=r"hash_rows names \['store'\]"):
        arm_config("pretrained", hash_rows={"store": {"rows": 5}})
    config = arm_config("pretrained", **SMALL, **fields)
    with pytest.raises(ValueError, match="leave out hash_rows"):
        train(planted.train, planted.valid, config, snapshots=planted.snapshots, id_maps=result.id_maps)


def test_progress_sees_every_validation(planted: Planted) -> None:
    rows: list[Mapping[str, float]] = []
    config = arm_config("no_ids", **SMALL, max_epochs=2, validations_per_epoch=2, patience=9)
    result = train(planted.train, planted.valid, config, progress=rows.append)
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert rows == result.history


def test_misfitting_arguments_are_refused(planted: Planted, results: dict[Arm, RankingResult]) -> None:
    with pytest.raises(ValueError, match=r"no snapshot of the pretrained facets \['kge'\]"):
        train(planted.train, planted.valid, arm_config("pretrained"), snapshots=planted.snapshots[:1])
    with pytest.raises(ConfigurationError, match="not in facets"):
        RankingConfig(facets=("kge",), pretrained_facets=("contrastive",))
    with pytest.raises(ValueError, match="expected one of no_ids, scratch, pretrained"):
        arm_config("other")  # type: ignore[arg-type]
    renamed = replace(planted.test, dense_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="dense features"):
        results["no_ids"].score(renamed)
    wild = replace(planted.train, dense=np.full_like(planted.train.dense, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        train(wild, planted.valid, arm_config("no_ids", **SMALL))


def test_a_facet_can_learn_at_its_own_rate_or_not_at_all(planted: Planted) -> None:
    start = fit(planted, "pretrained", max_epochs=1, freeze_tables=True).model.state_dict()
    own = fit(planted, "pretrained", max_epochs=1, facet_lrs={"kge": 0.0}).model.state_dict()
    for name, value in start.items():
        if name.startswith("tables."):
            assert torch.equal(own[name], value) == ("_kge." in name), name


def test_seldom_seen_rows_learn_at_a_share_of_the_rate(planted: Planted) -> None:
    one_step = {"max_epochs": 1, "validations_per_epoch": 1, "batch_size": len(planted.train)}
    start, whole, shared = (
        fit(planted, "pretrained", **one_step, **fields) for fields in ({"freeze_tables": True}, {}, {"row_lr_power": 0.5})
    )
    rows = torch.from_numpy(start.id_maps["pin"].rows(planted.train.pin_id)).long()
    counts = torch.bincount(rows, minlength=len(start.model.table("pin_kge"))).float()
    seen = counts > 0
    rates = (counts / counts[seen].mean()).sqrt().clamp(max=1)
    assert 0 < rates[seen].min() < 0.9
    moved, moved_less = (result.model.table("pin_kge")[seen] - start.model.table("pin_kge")[seen] for result in (whole, shared))
    assert moved.abs().max() > 0.01
    torch.testing.assert_close(moved_less, moved * rates[seen, None], atol=1e-6, rtol=1e-4)


def test_tables_thaw_after_the_steps_that_were_asked_for(planted: Planted) -> None:
    steps = -(-len(planted.train) // SMALL["batch_size"])
    start, late, last = (
        fit(planted, "pretrained", max_epochs=1, validations_per_epoch=1, **fields).model.table("pin_kge")
        for fields in ({"freeze_tables": True}, {"thaw_after_steps": steps}, {"thaw_after_steps": steps - 1})
    )
    assert torch.equal(start, late)
    # One step moves the pins of one batch, and no others.
    moved = int((last != start).any(1).sum())
    assert 0 < moved <= SMALL["batch_size"]


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave out thaw_after_steps"):
        arm_config("pretrained", freeze_tables=True, thaw_after_steps=5)
    with pytest.raises(ConfigurationError, match="row_lr_power"):
        arm_config("pretrained", freeze_tables=True, row_lr_power=0.5)
    with pytest.raises(ConfigurationError, match="expected rates of 0 or more of the facets"):
        arm_config("pretrained", facet_lrs={"graphsage": 0.1})


def test_settings_that_another_choice_makes_idle_are_refused() -> None:
    for fields in (
        {"num_experts": 8},
        {"num_blocks": 3},
        {"interaction": "dlrm", "cross_rank": 8},
        {"sequence_table": "separate"},
    ):
        with pytest.raises(ConfigurationError, match="would do nothing"):
            arm_config("pretrained", **fields)
    with pytest.raises(ConfigurationError, match="would do nothing"):
        arm_config("no_ids", combination="attention")
    with pytest.raises(ConfigurationError, match="only"):
        arm_config("pretrained", combination="attention", features=("user",))
    config = arm_config("pretrained", heads="mmoe", num_experts=8)
    assert RankingConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"combination": "attention"},
        {"combination": "sum", "interaction": "dlrm", "heads": "esmm"},
        {"combination": "gating", "interaction": "masknet", "heads": "mmoe"},
        {"interaction": "dhen", "heads": "esmm"},
    ],
    ids=lambda fields: "-".join(fields.values()),
)
def test_other_upper_models_find_the_preference_too(planted: Planted, fields: dict[str, Any]) -> None:
    idle = ("projected",) if fields.get("interaction") == "dlrm" else ()
    settings = {name: value for name, value in (SMALL | {"max_epochs": 4, **fields}).items() if name not in idle}
    result = train(planted.train, planted.valid, arm_config("pretrained", **settings), snapshots=planted.snapshots)
    areas = {task: row["roc_auc"] for task, row in evaluate(result.score(planted.test), planted.test).items()}
    assert areas["ctr"] > 0.8
    assert areas["cvr"] > 0.65


def test_two_hashes_tell_ids_apart_that_one_confuses(planted: Planted) -> None:
    """Clicks depend on the pin alone; 60 pins share 30 rows."""
    generator = np.random.default_rng(3)
    liked = generator.random(60) < 0.5

    def draw(examples: Examples) -> Examples:
        pin = generator.integers(0, 60, len(examples))
        return replace(examples, pin_id=pin, ctr_label=liked[pin].astype(np.float32))

    train_examples, valid_examples = draw(planted.train), draw(planted.valid)
    config = arm_config("scratch", **SMALL, features=("pin",), facets=("kge",), max_epochs=4)
    areas = {}
    for num_hashes in (1, 2):
        maps = {"pin": IdMap.hashed(30, id_type="int64", num_hashes=num_hashes)}
        result = train(train_examples, valid_examples, config, id_maps=maps)
        areas[num_hashes] = result.metrics["valid_ctr_roc_auc"]
        assert result.model.table("pin_kge").shape == (30, DIM)
    assert areas[1] < 0.97
    assert areas[2] > 0.99


def test_tables_can_start_anew_in_every_epoch(planted: Planted) -> None:
    """One more epoch over the same ids adds to what the tables remember of labels, unless they start anew."""
    noise = replace(planted.train, ctr_label=np.random.default_rng(0).permutation(planted.train.ctr_label))
    losses = {}
    for reinit in (False, True):
        config = arm_config(
            "scratch",
            **SMALL | {"dropout": 0.0},
            max_epochs=4,
            patience=9,
            table_lr=0.1,
            validations_per_epoch=1,
            reinit_tables=reinit,
        )
        losses[reinit] = [row["loss"] for row in train(noise, planted.valid, config, snapshots=planted.snapshots).history]
    assert losses[False][0] == losses[True][0]
    assert losses[False][3] < losses[True][3] - 0.05
