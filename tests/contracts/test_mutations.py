"""Every public callable of the learning rooms, called with each argument wrong in each way, answers in our own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import artifacts, contrastive, kge, ranking, tables, training
from multifacet.contrastive import ContrastiveConfig, Positives
from multifacet.kge import EdgeList, KgeConfig
from multifacet.kge.evaluation.ranks import SeenEnds
from multifacet.ranking import LabelledColumns, RankingConfig
from multifacet.tables import IdMap, Snapshot, SnapshotTable

from .mutations import Call, faults, public_callables

ANY = frozenset


def rows(num: int = 6, dim: int = 8) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(0))


def write_snapshot(path: Path) -> Snapshot:
    return Snapshot.write(path, facet="kge", tables={"pin": SnapshotTable(ids=pa.array(range(6)), vectors=rows())})


def of_tables(folder: Path) -> dict[str, Call]:
    snapshot = write_snapshot(folder / "s")
    encoded = tables.encode(rows(), "int4")
    return {
        "encode": Call(function=tables.encode, arguments={"vectors": rows(), "precision": "int4", "rounding": "minmax"}),
        "check_encodable": Call(function=tables.check_encodable, arguments={"vectors": rows(), "precision": "int4"}),
        "decode": Call(function=tables.decode, arguments={"rows": encoded, "dim": 8, "precision": "int4"}),
        "row_bytes": Call(function=tables.row_bytes, arguments={"dim": 8, "precision": "int4"}),
        "relative_error": Call(function=tables.relative_error, arguments={"vectors": rows(), "decoded": rows()}),
        "gather_rows": Call(function=tables.gather_rows, arguments={"table": rows()}),
        "find_neighbors": Call(
            function=tables.find_neighbors,
            arguments={"queries": rows(), "vectors": rows(9), "k": 2, "similarity": "cosine", "backend": "torch"},
        ),
        "compare_snapshots": Call(
            function=tables.compare_snapshots,
            arguments={"old": snapshot, "new": snapshot, "align": True, "neighbors": True, "seed": 0},
        ),
        "fit_alignment": Call(
            function=tables.fit_alignment, arguments={"symmetry": "rotation", "pairs": {"pin": (rows(), rows())}}
        ),
        "align_snapshot": Call(
            function=tables.align_snapshot,
            arguments={"path": folder / "a", "new": snapshot, "to": snapshot, "symmetry": "signs"},
        ),
        "accumulate_rows": Call(
            function=tables.accumulate_rows,
            arguments={"indices": torch.tensor([0, 1, 0], dtype=torch.int32), "gradients": rows(3)},
        ),
        "plan_precision": Call(
            function=tables.plan_precision,
            arguments={"vectors": rows(), "frequencies": np.ones(6), "budget_bytes": 999, "rounding": "refit"},
        ),
        "IdMap": Call(function=IdMap.exact, arguments={"ids": np.arange(5)}),
        "IdMap.hashed": Call(
            function=IdMap.hashed, arguments={"num_rows": 9, "id_type": "int64", "num_hashes": 1}, positional=("num_rows",)
        ),
        "Snapshot": Call(function=Snapshot.load, arguments={"path": folder / "s"}, positional=("path",)),
        "RowwiseAdagrad": Call(
            function=tables.RowwiseAdagrad, arguments={"num_rows": 5, "lr": 0.1, "eps": 1e-10, "initial": 0.0}
        ),
    }


def of_artifacts(folder: Path) -> dict[str, Call]:
    write_snapshot(folder / "s")
    return {
        "remove_stale_temporaries": Call(
            function=artifacts.remove_stale_temporaries, arguments={"parent": folder, "name": "s"}
        ),
        "Artifact": Call(function=artifacts.Artifact.open, arguments={"path": folder / "s"}, positional=("path",)),
    }


def of_training(folder: Path) -> dict[str, Call]:
    write_snapshot(folder / "s")
    return {
        "WarmStart": Call(
            function=training.WarmStart.load,
            arguments={"path": folder / "s", "pull": 0.5, "keep_state": 1.0},
            positional=("path",),
        ),
        "WarmStartConfig": Call(function=training.WarmStartConfig, arguments={"pull": 0.5, "new_rows": "mean"}),
        "Lifecycle": Call(
            function=training.Lifecycle, arguments={"checkpoint": folder / "c", "every_seconds": 1.0, "resume": True}
        ),
    }


TRIPLES = [(f"u{number % 5}", "buys", f"p{number % 7}") for number in range(35)]
SPLIT = kge.read_split(TRIPLES[:30], TRIPLES[30:])
KGE = KgeConfig(dim=4, epochs=1, batch_size=8, chunk_size=8, num_uniform=2, num_degree=0, validation={"num_edges": 0})


def of_kge(folder: Path) -> dict[str, Call]:
    result = kge.train_triples(SPLIT, KGE)
    result.write_snapshot(folder / "k", SPLIT)
    predictor, known, edges = result.predictor(), kge.known_pairs(*SPLIT), SPLIT.valid.edges()
    scored = {"predictor": predictor, "edges": edges, "known": known}
    table = pa.table({"head": ["a", "b"], "relation": ["r", "r"], "tail": ["b", "c"]})
    triples = {"heads": np.int32([0, 1]), "relations": np.int32([0, 0]), "tails": np.int32([1, 0]), "relation_names": ("r",)}
    return {
        "read_triples": Call(
            function=kge.read_triples,
            arguments={"source": table, "columns": ("head", "relation", "tail"), "duplicates": "refuse"},
        ),
        "read_split": Call(
            function=kge.read_split,
            arguments={"train": TRIPLES[:30], "valid": TRIPLES[30:], "duplicates": "drop", "types": {"buys": ("u", "p")}},
        ),
        "train_triples": Call(
            function=kge.train_triples, arguments={"split": SPLIT, "config": KGE, "lifecycle": training.Lifecycle()}
        ),
        "search": Call(
            function=kge.search,
            arguments={"split": SPLIT, "base": KGE, "space": {"lr": [0.1]}, "minutes": 0.001, "num_seeds": 0},
        ),
        "default_space": Call(
            function=kge.default_space, arguments={"base": KGE, "statistics": kge.GraphStatistics.of(SPLIT.train)}
        ),
        "GraphStatistics": Call(function=kge.GraphStatistics.of, arguments={"triples": SPLIT.train}, positional=("triples",)),
        "align": Call(
            function=kge.align,
            arguments={"path": folder / "a", "new": Snapshot.load(folder / "k"), "to": Snapshot.load(folder / "k")},
        ),
        "symmetry_of": Call(function=kge.symmetry_of, arguments={"model": "transe", "distance": "l1"}),
        "build_model": Call(function=kge.build_model, arguments={"config": KGE}),
        "known_pairs": Call(function=kge.known_pairs, arguments={"triples": SPLIT.train}, positional=("triples",)),
        "evaluate": Call(function=kge.evaluate, arguments=scored | {"hits": (1, 3)}),
        "evaluate_constrained": Call(
            function=kge.evaluate_constrained, arguments=scored | {"seen": SeenEnds.of(SPLIT.train), "hits": (1, 3)}
        ),
        "evaluate_sampled": Call(
            function=kge.evaluate_sampled,
            arguments=scored | {"num_sampled": 3, "generator": np.random.default_rng(0), "hits": (1, 3)},
        ),
        "EdgeList": Call(function=EdgeList, arguments={"heads": np.int32([0, 1]), "tails": np.int32([1, 0])}),
        "TripleSet": Call(function=kge.TripleSet, arguments=triples | {"ends": {"r": ("a", "a")}, "num_nodes": {"a": 2}}),
        "LinkPredictor": Call(function=kge.LinkPredictor.from_snapshot, arguments={"path": folder / "k"}, positional=("path",)),
        "LinkPredictor.top_tails": Call(
            function=predictor_of(folder / "k").top_tails,
            arguments={"head": "u1", "relation": "buys", "k": 2},
            positional=("head", "relation"),
        ),
        "TransE": Call(function=kge.TransE, arguments={"dim": 4, "distance": "l2"}),
        "TransR": Call(function=kge.TransR, arguments={"dim": 4, "distance": "l2"}),
        "TransRA": Call(function=kge.TransRA, arguments={"dim": 4, "rank": 2, "distance": "l2"}),
        "DistMult": Call(function=kge.DistMult, arguments={"dim": 4, "relation_init": "signs"}),
        "ComplEx": Call(function=kge.ComplEx, arguments={"dim": 4, "relation_init": "signs"}),
        "RotatE": Call(function=kge.RotatE, arguments={"dim": 4, "distance": "l2"}),
        "KgeConfig": Call(function=KgeConfig, arguments={"model": "complex", "dim": 4, "lr": 0.1, "reciprocal": True}),
        "PlateauConfig": Call(function=kge.PlateauConfig, arguments={"factor": 0.5, "patience": 2}),
        "KgeValidation": Call(function=kge.KgeValidation, arguments={"num_edges": 3, "choose": "random", "max_fraction": 0.1}),
        "FullSoftmaxConfig": Call(function=kge.FullSoftmaxConfig, arguments={"optimizer": "adam", "label_smoothing": 0.1}),
    }


def predictor_of(path: Path) -> kge.LinkPredictor:
    return kge.LinkPredictor.from_snapshot(path)


PAIRS = contrastive.read_pairs([(f"u{number % 5}", f"p{number % 7}") for number in range(0, 35, 2)])
_KNOWN = set(zip(PAIRS.positives.queries.tolist(), PAIRS.positives.items.tolist(), strict=True))
_NEW = np.array([(query, item) for query in range(5) for item in range(7) if (query, item) not in _KNOWN])
NEW_PAIRS = Positives.from_pairs(_NEW[:, 0], _NEW[:, 1], num_queries=5, num_items=7)
CONTRASTIVE = ContrastiveConfig(dim=4, epochs=9, batch_size=4, num_uniform=2, num_degree=0)


def of_contrastive(folder: Path) -> dict[str, Call]:
    contrastive.train_pairs(PAIRS, CONTRASTIVE).write_snapshot(folder / "c", PAIRS)
    items = contrastive.ItemPredictor.from_snapshot(folder / "c")
    pairs = {"queries": np.array([0, 1, 2]), "items": np.array([1, 0, 3]), "num_queries": 3, "num_items": 4}
    relevant = Positives.from_pairs(**pairs).index()
    return {
        "read_pairs": Call(
            function=contrastive.read_pairs,
            arguments={
                "source": pa.table({"u": ["a", "b"], "i": [1, 2], "n": [1.0, 2.0]}),
                "columns": ("u", "i"),
                "weight": "n",
            },
        ),
        "align": Call(
            function=contrastive.align,
            arguments={"path": folder / "a", "new": Snapshot.load(folder / "c"), "to": Snapshot.load(folder / "c")},
        ),
        "train_pairs": Call(
            function=contrastive.train_pairs,
            arguments={
                "positives": PAIRS,
                "config": CONTRASTIVE,
                "held_out": PAIRS.positives,
                "lifecycle": training.Lifecycle(),
            },
        ),
        "evaluate": Call(
            function=contrastive.evaluate,
            arguments={
                "queries": rows(3),
                "items": rows(4),
                "relevant": relevant,
                "seen": relevant,
                "k": 2,
                "popularity": np.ones(4),
            },
        ),
        "Positives": Call(function=Positives.from_pairs, arguments=pairs | {"weights": np.ones(3)}),
        "ItemPredictor": Call(
            function=contrastive.ItemPredictor.from_snapshot, arguments={"path": folder / "c"}, positional=("path",)
        ),
        "ItemPredictor.top_items": Call(
            function=items.top_items, arguments={"query": "u1", "k": 2, "known": ["p1"]}, positional=("query",)
        ),
        "ContrastiveConfig": Call(function=ContrastiveConfig, arguments={"dim": 4, "lr": 0.1, "loss": "ccl"}),
        "ContrastiveValidation": Call(function=contrastive.ContrastiveValidation, arguments={"num_queries": 3, "k": 5}),
        "ComposedTower": Call(
            function=contrastive.ComposedTower, arguments={"node_type": "a", "through": "made_by", "share": 0.5}
        ),
        "search": Call(
            function=contrastive.search,
            arguments={
                "positives": PAIRS,
                "held_out": NEW_PAIRS,
                "base": CONTRASTIVE,
                "space": {"lr": [0.1]},
                "minutes": 0.001,
                "num_seeds": 0,
            },
        ),
        "default_space": Call(function=contrastive.default_space, arguments={"base": CONTRASTIVE}),
        "PositiveWalks": Call(function=contrastive.PositiveWalks, arguments={"num_walks": 3, "hops": 1, "weight": 0.2}),
    }


ROWS = ranking.read_examples(
    pa.table({"user_id": [1, 1, 2, 2], "pin_id": [7, 8, 7, 8], "clicked": [0, 1, 0, 1], "price": [0.5, 1.0, 2.0, 3.0]}),
    LabelledColumns(dense=("price",)),
)
RANKING = RankingConfig(features=("user", "pin"), facets=("own",), pretrained_facets=(), dim=4, max_epochs=1, hidden=(4,))
MAPS = {"user": IdMap.exact([1, 2]), "pin": IdMap.exact([7, 8])}


class Sum(torch.nn.Module):
    def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.sum((1, 2))[:, None].repeat(1, 2) + dense.sum(1, keepdim=True)


def of_ranking(folder: Path) -> dict[str, Call]:
    labels, scores, users = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 1, 2, 2])
    metric = {"labels": labels, "scores": scores}
    calibrated = {"labels": labels, "probabilities": scores, "weights": np.ones(4)}
    pair = np.stack([scores, scores], 1).astype(np.float32)
    snapshot = write_snapshot(folder / "r")
    result = ranking.train(ROWS, ROWS, RANKING)
    ranking.export_model(folder / "m", result)
    source = {
        "snapshot": snapshot,
        "node_type": "pin",
        "id_map": IdMap.exact(range(6)),
        "norm": 1.0,
        "missing": "mean",
        "seed": 0,
    }
    periods = pa.table({"period": [1, 2], "start_time": pa.array([0, 10], pa.timestamp("us"))})
    events = pa.table({"user_id": [1, 1], "pin_id": [2, 3], "time": pa.array([0, 1], pa.timestamp("us"))})
    resampled = {"num_resamples": 5, "seed": 0}
    return {
        "roc_auc": Call(function=ranking.roc_auc, arguments=metric | {"weights": np.ones(4)}),
        "pr_auc": Call(function=ranking.pr_auc, arguments=metric | {"weights": np.ones(4)}),
        "log_loss": Call(function=ranking.log_loss, arguments=calibrated),
        "normalized_entropy": Call(function=ranking.normalized_entropy, arguments=calibrated),
        "group_roc_auc": Call(function=ranking.group_roc_auc, arguments=metric | {"groups": users, "weights": np.ones(4)}),
        "bootstrap_roc_auc": Call(
            function=ranking.bootstrap_roc_auc,
            arguments=metric | {"users": users, "population": np.array([1, 2]), "weights": np.ones(4)} | resampled,
        ),
        "delong_covariance": Call(function=ranking.delong_covariance, arguments={"labels": labels, "scores": [scores, scores]}),
        "delong_interval": Call(function=ranking.delong_interval, arguments=metric | {"confidence": 0.9}),
        "delong_test": Call(
            function=ranking.delong_test, arguments=metric | {"baseline": scores[::-1].copy(), "confidence": 0.9}
        ),
        "calibration_buckets": Call(function=ranking.calibration_buckets, arguments=calibrated | {"num_buckets": 2}),
        "expected_calibration_error": Call(
            function=ranking.expected_calibration_error,
            arguments={"buckets": ranking.calibration_buckets(labels, scores, num_buckets=2)},
        ),
        "correct_for_sampling": Call(
            function=ranking.correct_for_sampling, arguments={"probabilities": scores, "negative_rate": 0.5}
        ),
        "evaluate": Call(
            function=ranking.evaluate, arguments={"scores": pair, "examples": ROWS, "confidence": 0.9} | resampled
        ),
        "compare": Call(
            function=ranking.compare,
            arguments={"scores": pair, "baseline": pair, "examples": ROWS, "confidence": 0.9} | resampled,
        ),
        "evaluate_segments": Call(
            function=ranking.evaluate_segments,
            arguments={"scores": pair, "examples": ROWS, "segments": {"a": np.ones(4, bool)}, "num_resamples": 5},
        ),
        "standard_segments": Call(
            function=ranking.standard_segments, arguments={"examples": ROWS, "training": ROWS, "head_share": 0.5}
        ),
        "read_examples": Call(
            function=ranking.read_examples,
            arguments={
                "source": pa.table({"user_id": [1, 2], "pin_id": [7, 8], "clicked": [0, 1]}),
                "columns": LabelledColumns(),
            },
        ),
        "read_times": Call(
            function=ranking.read_times,
            arguments={
                "source": pa.table({"time": pa.array([0, 1], pa.timestamp("us"))}),
                "columns": LabelledColumns(time="time"),
            },
        ),
        "recent_pins": Call(
            function=ranking.recent_pins,
            arguments={
                "events": events,
                "periods": periods,
                "user_ids": np.array([1, 1]),
                "exposed_in": np.int32([1, 2]),
                "length": 2,
            },
        ),
        "make_id_maps": Call(function=ranking.make_id_maps, arguments={"snapshots": (), "examples": ROWS, "config": RANKING}),
        "make_model": Call(
            function=ranking.make_model,
            arguments={"config": RANKING, "id_maps": MAPS, "num_dense": 1, "num_recent": 0, "table_device": "cpu"},
        ),
        "arm_config": Call(function=ranking.arm_config, arguments={"arm": "scratch", "dim": 8}),
        "train": Call(
            function=ranking.train,
            arguments={"examples_train": ROWS, "examples_valid": ROWS, "config": RANKING, "snapshots": (), "id_maps": MAPS},
        ),
        "init_tables": Call(function=ranking.init_tables, arguments={"model": torch.nn.Linear(1, 1), "sources": {}}),
        "export_model": Call(
            function=ranking.export_model, arguments={"path": folder / "x", "result": result, "replace": True}
        ),
        "load_model": Call(function=ranking.load_model, arguments={"path": folder / "m", "verify": True}),
        "quantized_scores": Call(
            function=ranking.quantized_scores, arguments={"model": folder / "m", "precision": "int4", "examples": ROWS}
        ),
        "write_model": Call(
            function=ranking.write_model,
            arguments={
                "path": folder / "w",
                "upper": Sum(),
                "tables": {"pin": torch.ones(3, 4)},
                "id_maps": {"pin": MAPS["pin"]},
                "dense_names": ("price",),
                "list_lengths": {"pin": 2},
                "name": "own",
                "replace": True,
            },
        ),
        "TableSource": Call(function=ranking.TableSource, arguments=source),
        "ExampleLoader": Call(
            function=ranking.ExampleLoader,
            arguments={"examples": ROWS, "id_maps": MAPS, "batch_size": 2, "seed": 0, "rank": 0, "num_ranks": 1},
        ),
        "RankingConfig": Call(function=RankingConfig, arguments={"dim": 4, "dropout": 0.1, "interaction": "dlrm"}),
        "FeatureConfig": Call(function=ranking.FeatureConfig, arguments={"recent_periods": 2, "category_relation": "in"}),
        "LabelledColumns": Call(function=LabelledColumns, arguments={"user": "u", "max_list_length": 3}),
    }


#: Rooms, their calls, and the public callables that are not called with bad input, with the reason.
FOUND = "it is what a function gives, and nobody makes one"
INSIDE = "what rooms use of one another"
LEFT_OUT: dict[str, dict[str, str]] = {
    "artifacts": {
        "ArtifactError": FOUND,
        "ArtifactWriter": "a context; tests/artifacts/test_artifact.py",
    }
    | dict.fromkeys(
        ("link_or_copy", "map_tensors", "read_manifest", "replacing", "sync_directory", "sync_file", "write_file"), INSIDE
    ),
    "training": dict.fromkeys(
        ("CheckpointError", "Position", "Record", "SavedState", "SearchReport", "StepProgress", "TrainingRun"), FOUND
    )
    | {"Checkpoint": "tests/training/test_checkpoint.py"}
    | dict.fromkeys(
        (
            *("AliasSampler", "Lanes", "PairIndex", "Pieces", "PreparingThread", "ShardedTables", "TrainerState"),
            *("UniformSampler", "are_several", "assemble", "begin_run", "check_rows", "degree_weights", "plan_by_rows"),
            *("Choice", "Family", "Program", "Pruned", "Range", "Recipe", "family_of_space", "run_search"),
        ),
        INSIDE,
    ),
    "tables": dict.fromkeys(("CollisionReport", "Recall", "TableDrift"), FOUND)
    | dict.fromkeys(("IndexConfig", "IndexSource", "VectorIndex", "measure_recall"), "tests/tables/searching/test_index.py")
    | {
        "MixedTable": "tests/tables/codec/test_mixed.py",
        "OptimizerRows": "Snapshot.write checks it; tests/tables/test_snapshot.py",
        "Alignment": FOUND,
        "SnapshotTable": "Snapshot.write checks it; tests/tables/test_snapshot.py",
    },
    "kge": dict.fromkeys(("KgeResult", "Prediction", "Search"), FOUND)
    | dict.fromkeys(("model_names", "register_model"), "tests/kge/models/test_registry.py")
    | {
        "Model": "the models' base",
        "TripleSplit": "three TripleSets",
        "split_view": "of a graph's view; test_kge_contract.py",
        "train": "of a graph's view; test_kge_contract.py",
    },
    "contrastive": dict.fromkeys(("ContrastiveResult", "ContrastiveSearch", "Pairs", "Prediction"), FOUND)
    | {
        "split_view": "of a graph's view; test_contrastive_contract.py",
        "train": "of a graph's view; test_contrastive_contract.py",
    },
    "ranking": dict.fromkeys(
        (
            *("Batch", "CalibrationBucket", "Columns", "DeLongTest", "ExportedModel", "IdLists", "InitReport", "RankingModel"),
            *("RankingResult", "RecentPins", "TableCoverage", "TableRenewal", "TableSpec", "UpperModel"),
        ),
        FOUND,
    )
    | {
        "Examples": "tests/ranking/examples",
        "build_examples": "of a store; test_ranking_contract.py",
        "renew_model": "of a trained model; tests/ranking/export/test_renewal.py",
        "share_examples": "of a process group; tests/ranking/training/test_sharded.py",
    },
}
ROOMS: dict[str, tuple[ModuleType, Callable[[Path], Mapping[str, Call]]]] = {
    "artifacts": (artifacts, of_artifacts),
    "training": (training, of_training),
    "tables": (tables, of_tables),
    "kge": (kge, of_kge),
    "contrastive": (contrastive, of_contrastive),
    "ranking": (ranking, of_ranking),
}


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_public_callable_is_called_with_bad_input(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    face, make_calls = ROOMS[room]
    calls = make_calls(tmp_path)
    asked = {name.split(".")[0] for name in calls}
    assert public_callables(face) - asked - set(LEFT_OUT[room]) == set()
    assert (asked | set(LEFT_OUT[room])) - public_callables(face) == set(), "names that are not public"
    found: Any = faults(calls)
    assert not found, "\n".join(found)
