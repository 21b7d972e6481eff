"""Generating a world month by month, in bounded memory."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file

from multifacet.graphdb.progress import Progress
from multifacet.graphdb.schema import Surface
from multifacet.graphdb.threads import Workers
from multifacet.graphdb.world import exposures, interactions
from multifacet.graphdb.world.config import FORMAT, INTERACTIONS, InteractionName, WorldConfig
from multifacet.graphdb.world.interests import directions, draw_advertisers, draw_appeals, drift, nearest
from multifacet.graphdb.world.layout import Layout, save_tensors, unfinished, write_manifest, writing
from multifacet.graphdb.world.month import Month
from multifacet.graphdb.world.population import Population

logger = logging.getLogger(__name__)

_UNTIMED: Final = pa.schema([pa.field("src", pa.int64(), nullable=False), pa.field("dst", pa.int64(), nullable=False)])
_NODES: Final = pa.schema([pa.field("id", pa.int64(), nullable=False)])


def generate(config: WorldConfig, folder: Path, *, num_threads: int | None, chunk_size: int, progress: Progress | None) -> None:
    """Generates a world into `folder`, which must not be there; see `World.generate`."""
    started = time.perf_counter()
    workers = Workers(num_threads)
    with unfinished(folder, config.fingerprint) as work:
        _Generation(config, Layout(work), workers, chunk_size).run(progress)
        write_manifest(work, {"format": FORMAT, "fingerprint": config.fingerprint, "config": config.model_dump(mode="json")})
    seconds = time.perf_counter() - started
    logger.info("world of %d edges in %.1f s (%.0f edges/s)", config.num_edges, seconds, config.num_edges / seconds)


class _Generation:
    """One run; what an earlier run of the same settings has finished is left as it is."""

    def __init__(self, config: WorldConfig, layout: Layout, workers: Workers, chunk_size: int) -> None:
        self._config = config
        self._layout = layout
        self._workers = workers
        self._chunk_size = chunk_size
        self._users = self._population("user", config.num_users, config.user_churn_per_month, config.activity_exponent)
        self._pins = self._population("pin", config.num_pins, config.pin_churn_per_month, config.popularity_exponent)

    def run(self, progress: Progress | None) -> None:
        appeals = self._write_nodes()
        interests = directions(self._config, "interests", len(self._users), self._workers)
        for number in range(self._config.num_months):
            interests = self._interests(interests, number)
            self._write_month(
                Month(
                    number=number,
                    users=self._users.alias(number),
                    pins=self._pins.alias(number),
                    interests=interests,
                    appeals=appeals,
                )
            )
            logger.debug("month %d of %d is written", number + 1, self._config.num_months)
            if progress is not None:
                progress("months of the world", (number + 1) / self._config.num_months)

    def _population(self, name: str, num_alive: int, churn: float, exponent: float) -> Population:
        return Population.draw(
            name,
            num_alive=num_alive,
            churn_per_month=churn,
            num_months=self._config.num_months,
            exponent=exponent,
            seed=self._config.seed,
        )

    def _write_nodes(self) -> Mapping[Surface, NDArray[np.float32]]:
        """Writes nodes, untimed edges and the truth about them; returns the pins' appeals."""
        config, layout, workers = self._config, self._layout, self._workers
        advertisers = directions(config, "advertisers", config.num_advertisers, workers)
        categories = directions(config, "categories", config.num_categories, workers)
        advertiser = draw_advertisers(config, len(self._pins))
        onsite, offsite = draw_appeals(config, advertiser, advertisers, workers)
        category = nearest(onsite, categories, workers)
        counts = {
            "user": len(self._users),
            "pin": len(self._pins),
            "advertiser": config.num_advertisers,
            "category": config.num_categories,
        }
        for name, count in counts.items():
            _write_table(layout.nodes(name), pa.table([np.arange(count)], schema=_NODES))
        pins = np.arange(len(self._pins))
        _write_table(layout.edges("made_by"), pa.table([pins, advertiser], schema=_UNTIMED))
        _write_table(layout.edges("in"), pa.table([pins, category], schema=_UNTIMED))
        _write_table(layout.table("periods"), exposures.periods(config))
        truth: dict[str, NDArray[np.generic]] = {
            "pin_onsite": onsite,
            "pin_offsite": offsite,
            "advertiser": advertisers,
            "category": categories,
            "pin_popularity": self._pins.weights,
            "user_activity": self._users.weights,
            "pin_born": self._pins.born,
            "pin_died": self._pins.died,
            "user_born": self._users.born,
            "user_died": self._users.died,
        }
        save_tensors(layout.truth, truth)
        return {"onsite": onsite, "offsite": offsite}

    def _interests(self, before: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        """The interests of a month; `before` is of the month before, and may be overwritten."""
        path = self._layout.interests(number)
        if path.exists():
            return load_file(path)["interests"]
        if number > 0:
            drift(self._config, before, number, self._workers)
        save_tensors(path, {"interests": before})
        return before

    def _write_month(self, month: Month) -> None:
        for relation in INTERACTIONS:
            if not self._layout.noise(relation, month.number).exists():
                self._write_interactions(relation, month)
        tables = exposures.SCHEMAS
        if all(self._layout.table(name, month.number).exists() for name in tables):
            return
        with contextlib.ExitStack() as stack:
            writers = {
                name: stack.enter_context(writing(self._layout.table(name, month.number), schema))
                for name, schema in tables.items()
            }
            for name, batch in exposures.stream(self._config, month, self._workers):
                writers[name].write_batch(batch)

    def _write_interactions(self, relation: InteractionName, month: Month) -> None:
        chunks = interactions.stream(self._config, relation, month, workers=self._workers, chunk_size=self._chunk_size)
        is_noise = [np.empty(0, dtype=np.bool_)]
        with writing(self._layout.edges(relation, month.number), interactions.SCHEMA) as writer:
            for chunk in chunks:
                writer.write_batch(chunk.batch)
                is_noise.append(chunk.is_noise)
        # Last, as the sign that both files are there.
        save_tensors(self._layout.noise(relation, month.number), {"is_noise": np.concatenate(is_noise)})


def _write_table(path: Path, table: pa.Table) -> None:
    with writing(path, table.schema) as writer:
        writer.write_table(table)
