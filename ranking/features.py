"""Point-in-time dense features: what the graph knew before an exposure's period began.

Purchases are counted by (user, pin), (user, category), (user, advertiser), pin and user, once over all earlier
periods and once over the most recent ones. Events are first summed by period; each distinct key and
period among the exposures is then joined with that key's sums of strictly earlier periods.
"""

from __future__ import annotations

import time
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field

from multifacet.tables.configuration import Configuration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = getLogger(__name__)


class QueryableStore(Protocol):
    """What ranking asks of a graph store: the answer to a SQL query (see graphdb's SQL views)."""

    def sql(self, query: str, params: Any = None) -> pa.Table:
        """Run one read-only query."""
        ...


class FeatureConfig(Configuration):
    """Which edges of the graph the dense features count."""

    purchase_relations: tuple[str, ...] = Field(
        default=("responds", "buys"), min_length=1, description="timed user-to-pin relations that are counted"
    )
    category_relation: str = Field(default="in", description="untimed relation from a pin to its category")
    advertiser_relation: str = Field(default="made_by", description="untimed relation from a pin to its advertiser")
    recent_periods: int = Field(default=8, ge=1, description="how many periods before the exposure's own count as recent")
    max_periods_since: int = Field(default=52, ge=1, description="cap of the periods since a purchase; also stands for never")
    recent_pins: int = Field(
        default=0, ge=0, description="pins of the user's latest purchases that an example keeps, for a ranker with a sequence"
    )


# Key of each count; the number of events under that key is a feature, over all earlier periods and recent ones.
_COUNTED: dict[str, tuple[str, ...]] = {
    "user_pin": ("user_id", "pin_id"),
    "user_category": ("user_id", "category_id"),
    "user_advertiser": ("user_id", "advertiser_id"),
    "pin": ("pin_id",),
    "user": ("user_id",),
}


def dense_feature_names(config: FeatureConfig) -> tuple[str, ...]:
    """Return the names of the dense features, in column order.

    Example:
        >>> dense_feature_names(FeatureConfig())[:2]
        ('log_user_pin_total', 'log_user_pin_recent_8')
    """
    names = [f"log_{counted}_{span}" for counted in _COUNTED for span in ("total", f"recent_{config.recent_periods}")]
    return (*names, "log_user_pin_periods_since")


def load_events(store: QueryableStore, config: FeatureConfig) -> pa.Table:
    """Read the purchase events from the store's edges.

    Args:
        store: Store with the configured relations.
        config: Which relations.

    Returns:
        Table of user_id, pin_id and time, one row an edge.
    """
    selects = (
        f'SELECT src_id AS user_id, dst_id AS pin_id, "time" FROM "edges_{relation}"' for relation in config.purchase_relations
    )
    return store.sql(" UNION ALL ".join(selects))


def load_pins(store: QueryableStore, config: FeatureConfig) -> pa.Table:
    """Read each pin's category and advertiser; of several, the smallest.

    Args:
        store: Store with the configured relations.
        config: Which relations.

    Returns:
        Table of pin_id, category_id and advertiser_id (the last two nullable).
    """
    return store.sql(
        f"""
        SELECT coalesce(c.pin_id, a.pin_id) AS pin_id, category_id, advertiser_id
        FROM (SELECT src_id AS pin_id, min(dst_id) AS category_id
              FROM "edges_{config.category_relation}" GROUP BY ALL) c
        FULL JOIN (SELECT src_id AS pin_id, min(dst_id) AS advertiser_id
                   FROM "edges_{config.advertiser_relation}" GROUP BY ALL) a ON c.pin_id = a.pin_id
        ORDER BY ALL
        """
    )


def dense_features(
    events: pa.Table, periods: pa.Table, pins: pa.Table, exposures: pa.Table, config: FeatureConfig
) -> NDArray[np.float32]:
    """Compute the dense features of exposures.

    An event belongs to the last period that starts at or before it (all before the first period: to one more before
    that); only events of earlier periods than the
    exposure's are counted, so nothing at or after that period's start can change a feature.

    Args:
        events: user_id, pin_id, time; in any order.
        periods: period, start_time (and more).
        pins: pin_id, category_id, advertiser_id.
        exposures: user_id, pin_id, period (and more), one row an exposure.
        config: Which edges, and how many periods are recent.

    Returns:
        float32 [exposures, features], columns as `dense_feature_names` says. Counts are log(1 + count). The
        periods since the last purchase are log(1 + min(periods, max_periods_since)), the maximum where there
        was none.

    Raises:
        ValueError: If an exposure's period is not in periods.
    """
    started = time.perf_counter()
    exposures = exposures.append_column("row", pa.array(np.arange(exposures.num_rows)))
    with duckdb.connect() as connection:
        for name, table in (("event", events), ("period", periods), ("pin", pins), ("exposure", exposures)):
            connection.register(f"{name}_input", table)
        # A period's step is its rank by start time; events before the first period have step 0.
        connection.execute(
            "CREATE TEMP TABLE steps AS SELECT period, start_time, "
            "row_number() OVER (ORDER BY start_time) AS step FROM period_input"
        )
        connection.execute(
            """
            CREATE TEMP TABLE counts AS
            SELECT user_id, pin_id, category_id, advertiser_id, step, count(*) AS num_events
            FROM (SELECT e.user_id, e.pin_id, coalesce(s.step, 0) AS step
                  FROM event_input e ASOF LEFT JOIN steps s ON e.time >= s.start_time)
            LEFT JOIN pin_input USING (pin_id)
            GROUP BY ALL
            """
        )
        connection.execute(
            """
            CREATE TEMP TABLE exposures AS
            SELECT row, e.user_id, e.pin_id, category_id, advertiser_id, step
            FROM exposure_input e JOIN steps USING (period) LEFT JOIN pin_input USING (pin_id)
            """
        )
        found = connection.execute("SELECT count(*) FROM exposures").fetchone()
        if found is None or found[0] != exposures.num_rows:
            raise ValueError(
                f"{exposures.num_rows} exposures became {found and found[0]} when joined with periods and pins: "
                "every exposure's period must be in periods, and each period and pin there only once"
            )
        columns: list[NDArray[Any]] = []
        for key in _COUNTED.values():
            counted = connection.execute(_counts_query(key, config.recent_periods)).fetchnumpy()
            columns += [np.log1p(counted["total"]), np.log1p(counted["recent"])]
            if key == _COUNTED["user_pin"]:
                since = np.ma.filled(counted["periods_since"], config.max_periods_since)
                periods_since = np.log1p(np.minimum(since, config.max_periods_since))
        dense = np.stack([*columns, periods_since], axis=1).astype(np.float32)
    logger.info("dense features of %d exposures in %.1f s", len(dense), time.perf_counter() - started)
    return dense


def _counts_query(key: Sequence[str], recent_periods: int) -> str:
    """Write the query for one key's counts before each exposure, over all earlier periods and recent ones."""
    columns = ", ".join(key)
    return f"""
        WITH wanted AS (SELECT DISTINCT {columns}, step FROM exposures),
        counted AS (
            SELECT {columns}, step, sum(num_events) AS num_events
            FROM counts SEMI JOIN wanted USING ({columns}) GROUP BY ALL
        ),
        earlier AS (
            SELECT {columns}, w.step,
                   sum(num_events) AS total,
                   sum(num_events) FILTER (c.step >= w.step - {recent_periods}) AS recent,
                   w.step - max(c.step) AS periods_since
            FROM wanted w JOIN counted c USING ({columns}) WHERE c.step < w.step
            GROUP BY {columns}, w.step
        )
        SELECT row, coalesce(total, 0)::DOUBLE AS total, coalesce(recent, 0)::DOUBLE AS recent, periods_since
        FROM exposures LEFT JOIN earlier USING ({columns}, step)
        ORDER BY row
    """
