"""A model from its configuration: id maps, tables, upper model, and where the tables' first rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from multifacet.inputs import expect_attributes, kind, mapping_to, one_of, takes, whole
from multifacet.ranking.initialize.sources import TableSource
from multifacet.ranking.model.layout import TableSpec
from multifacet.ranking.model.model import RankingModel
from multifacet.ranking.model.sequence import SequencePooling
from multifacet.ranking.model.upper import UpperModel
from multifacet.ranking.slots import RECENT_PINS, Slot
from multifacet.tables import IdMap
from multifacet.tables.ids import to_arrow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.ranking.config import RankingConfig
    from multifacet.ranking.examples.examples import Examples
    from multifacet.tables import CollisionReport, Snapshot


logger = getLogger(__name__)


def known_ids(snapshots: Sequence[Snapshot], examples: Examples, config: RankingConfig, feature: str) -> Any:
    """Give a feature's distinct ids: the snapshots' in the order of their tables, else the examples'."""
    node_type = config.node_type(feature)
    parts = [snapshot.ids(node_type) for snapshot in snapshots if node_type in snapshot.node_types]
    if not parts:
        # Features of one node type share their ids.
        alike = [name for name in config.features if config.node_type(name) == node_type]
        parts = [to_arrow(examples.distinct_ids(name)) for name in alike]
    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"ids of {node_type!r} are of the types {sorted(map(str, kinds))}; make them alike")
    return pa.chunked_array(parts).unique()


@takes(snapshots=kind(list, tuple))
def make_id_maps(snapshots: Sequence[Snapshot], examples: Examples, config: RankingConfig) -> dict[str, IdMap]:
    """Make an id map for each feature: hashed where `hash_rows` says so, else exact, of the `known_ids`.

    Args:
        snapshots: Snapshots whose ids are used.
        examples: Examples whose ids are used where no snapshot has the feature's node type.
        config: Which features there are, and which of them are hashed.

    Returns:
        Feature -> id map; empty for a ranker without ids.
    """
    expect_attributes("examples", examples, ("distinct_ids", "ids"), "Examples")
    expect_attributes("config", config, ("features", "hash_rows"), "RankingConfig")
    maps: dict[str, IdMap] = {}
    for feature in config.features if config.facets else ():
        hashed = config.hash_rows.get(feature)
        if hashed is not None:
            id_type: Literal["int64", "string"] = "string" if feature in examples.vocabularies else "int64"
            maps[feature] = IdMap.hashed(hashed.rows, id_type=id_type, num_hashes=hashed.num_hashes)
            continue
        alike = [name for name in maps if config.node_type(name) == config.node_type(feature) and name not in config.hash_rows]
        maps[feature] = maps[alike[0]] if alike else IdMap.exact(known_ids(snapshots, examples, config, feature))
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


@takes(
    id_maps=mapping_to("IdMap", "num_rows", "rows_of", "id_type"),
    num_dense=whole(0),
    num_recent=whole(0),
    table_device=one_of("cpu", "meta", "cuda"),
)
def make_model(
    config: RankingConfig,
    id_maps: Mapping[str, IdMap],
    *,
    num_dense: int,
    num_recent: int = 0,
    list_lengths: Mapping[str, int] | None = None,
    table_device: str = "cpu",
) -> RankingModel:
    """Build an untrained ranker.

    Args:
        config: How to build it.
        id_maps: Id map of each feature.
        num_dense: Dense features.
        num_recent: Recent pins of an example, for a ranker with a sequence.
        list_lengths: Features of several ids -> ids that an example has at most.
        table_device: As in `RankingModel`.

    Raises:
        ValueError: If the configuration asks for a sequence and there are no recent pins.
    """
    expect_attributes("config", config, ("features", "sequence"), "RankingConfig")
    lacking = [name for name in config.features if config.facets and name not in id_maps]
    if lacking:
        raise ValueError(f"there are no id maps of {lacking}; make_id_maps makes those of a configuration")
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
            node_type=config.node_type(source),
            num_rows=id_maps[source].num_rows,
            dim=config.dim,
            num_hashes=id_maps[source].num_hashes,
            list_length=(list_lengths or {}).get(feature, 0),
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
    pooling = None
    if config.sequence != "none":
        pooling = SequencePooling(
            config.facets, dim=config.dim, length=num_recent, kind=config.sequence, num_heads=config.num_attention_heads
        )
    return RankingModel(
        specs,
        upper,
        pooling,
        table_device=table_device,
        table_dtype=config.table_dtype,
        id_dropout=config.id_dropout,
    )


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
    pretrained = {name for snapshot in snapshots for name in snapshot.node_types}
    sources, random = {}, []
    for spec in model.specs:
        if spec.facet not in by_facet:
            continue
        if spec.node_type not in pretrained:
            # Such as a country: no snapshot has its ids.
            random.append(spec.name)
            continue
        sources[spec.name] = TableSource(
            snapshot=by_facet[spec.facet],
            node_type=spec.node_type,
            id_map=id_maps["pin" if spec.feature == RECENT_PINS else spec.feature],
            norm=norm,
        )
    if random:
        logger.info("no snapshot has the node types of the tables %s: they start at random", ", ".join(random))
    return sources
