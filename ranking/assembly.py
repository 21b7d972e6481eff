"""A model from its configuration: id maps, tables, upper model, and where the tables' first rows come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ranking.layout import TableSpec
from ranking.model import RankingModel
from ranking.sequence import SequencePooling
from ranking.slots import RECENT_PINS, Slot
from ranking.sources import TableSource
from ranking.upper import UpperModel
from tables import IdMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ranking.config import RankingConfig
    from ranking.examples import Examples
    from tables import CollisionReport, Snapshot


def known_ids(snapshots: Sequence[Snapshot], examples: Examples, config: RankingConfig, feature: str) -> Any:
    """Give a feature's distinct ids: the snapshots' in the order of their tables, else the examples'."""
    parts = [snapshot.ids(feature) for snapshot in snapshots if feature in snapshot.node_types]
    if not parts:
        ids = examples.ids(feature)
        if feature == "pin" and config.sequence != "none" and examples.recent is not None:
            ids = np.concatenate([ids, examples.recent.listed()])
        parts = [pa.array(np.unique(ids))]
    return pa.chunked_array(parts).unique()


def make_id_maps(snapshots: Sequence[Snapshot], examples: Examples, config: RankingConfig) -> dict[str, IdMap]:
    """Make an id map for each feature: hashed where `hash_rows` says so, else exact, of the `known_ids`.

    Args:
        snapshots: Snapshots whose ids are used.
        examples: Examples whose ids are used where no snapshot has the feature's node type.
        config: Which features there are, and which of them are hashed.

    Returns:
        Feature -> id map; empty for a ranker without ids.
    """
    maps: dict[str, IdMap] = {}
    for feature in config.features if config.facets else ():
        hashed = config.hash_rows.get(feature)
        if hashed is not None:
            maps[feature] = IdMap.hashed(hashed.rows, id_type="int64", num_hashes=hashed.num_hashes)
        else:
            maps[feature] = IdMap.exact(known_ids(snapshots, examples, config, feature))
    return maps


def count_collisions(
    id_maps: Mapping[str, IdMap], snapshots: Sequence[Snapshot], examples: Examples, config: RankingConfig
) -> dict[str, CollisionReport]:
    """Count which ids share rows, for each feature that `hash_rows` names.

    Args:
        id_maps: What `make_id_maps` gave.
        snapshots: As for `make_id_maps`.
        examples: As for `make_id_maps`.
        config: Which features are hashed.

    Returns:
        Feature -> report over the ids that an exact map would have had.
    """
    return {
        feature: id_maps[feature].collision_report(known_ids(snapshots, examples, config, feature))
        for feature in config.hash_rows
    }


def make_model(
    config: RankingConfig,
    id_maps: Mapping[str, IdMap],
    *,
    num_dense: int,
    num_recent: int = 0,
    table_device: str = "cpu",
) -> RankingModel:
    """Build an untrained ranker.

    Args:
        config: How to build it.
        id_maps: Id map of each feature.
        num_dense: Dense features.
        num_recent: Recent pins of an example, for a ranker with a sequence.
        table_device: As in `RankingModel`.

    Raises:
        ValueError: If the configuration asks for a sequence and there are no recent pins.
    """
    has_sequence = config.sequence != "none"
    if has_sequence and num_recent < 1:
        raise ValueError(
            f"sequence is {config.sequence!r}, but the examples have no recent pins; build them with "
            "FeatureConfig(recent_pins=20), or set sequence to 'none'"
        )
    # The separate tables of recent pins hold the same ids as the pins' own.
    source_of = {feature: feature for feature in config.features}
    if has_sequence and config.sequence_table == "separate":
        source_of[RECENT_PINS] = "pin"
    specs = [
        TableSpec(
            feature=feature,
            facet=facet,
            node_type=source,
            num_rows=id_maps[source].num_rows,
            dim=config.dim,
            num_hashes=id_maps[source].num_hashes,
        )
        for facet in config.facets
        for feature, source in source_of.items()
    ]
    slot_features = (*config.features, RECENT_PINS) if has_sequence else config.features
    upper = UpperModel(
        num_dense=num_dense,
        slots=[Slot(feature, facet) for facet in config.facets for feature in slot_features],
        dim=config.dim,
        combination=config.combination,
        interaction=config.interaction,
        heads=config.heads,
        projected=config.projected,
        cross_rank=config.cross_rank,
        num_cross_layers=config.num_cross_layers,
        num_blocks=config.num_blocks,
        num_attention_heads=config.num_attention_heads,
        num_experts=config.num_experts,
        hidden=config.hidden,
        dropout=config.dropout,
    )
    if config.sequence == "none":
        return RankingModel(specs, upper, table_device=table_device, table_dtype=config.table_dtype)
    pooling = SequencePooling(
        config.facets, dim=config.dim, length=num_recent, kind=config.sequence, num_heads=config.num_attention_heads
    )
    return RankingModel(specs, upper, pooling, table_device=table_device, table_dtype=config.table_dtype)


def choose_snapshots(snapshots: Sequence[Snapshot], config: RankingConfig) -> list[Snapshot]:
    """Choose the snapshot of each pretrained facet.

    Raises:
        ValueError: If there is none for one.
    """
    by_facet = {snapshot.facet: snapshot for snapshot in snapshots}
    missing = [facet for facet in config.pretrained_facets if facet not in by_facet]
    if missing:
        raise ValueError(
            f"no snapshot of the pretrained facets {missing}; given are {sorted(by_facet)}. Pretrain them, or "
            "take them out of pretrained_facets"
        )
    return [by_facet[facet] for facet in config.pretrained_facets]


def table_sources(
    model: RankingModel, snapshots: Sequence[Snapshot], id_maps: Mapping[str, IdMap], norm: float
) -> dict[str, TableSource]:
    """Say where the first rows of each pretrained facet's tables come from.

    Args:
        model: The model.
        snapshots: One a pretrained facet.
        id_maps: Id map of each feature.
        norm: Root mean square norm of a slot: an id that reads several rows gets their sum.

    Returns:
        Table -> source.
    """
    by_facet = {snapshot.facet: snapshot for snapshot in snapshots}
    return {
        spec.name: TableSource(
            snapshot=by_facet[spec.facet],
            node_type=spec.node_type,
            id_map=id_maps[spec.node_type if spec.feature == RECENT_PINS else spec.feature],
            norm=norm,
        )
        for spec in model.specs
        if spec.facet in by_facet
    }
