"""Cuts the small sample of The Complete Journey that comes with the project: `python -m multifacet.pipeline.sample data/sample`.

The sample keeps whole households: those that did most of their shopping in the busiest stores that have promotion data.
Their purchases elsewhere are left out, since without the promotions of those stores every such purchase would look
unpromoted. Promotions are kept of products that the sample bought.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import duckdb

from multifacet.graphdb import Recipe

logger = logging.getLogger(__name__)

_STEPS = {
    "stores": """
        SELECT store_id FROM transactions SEMI JOIN (SELECT DISTINCT store_id FROM promotions) AS promoting USING (store_id)
        GROUP BY store_id ORDER BY count(*) DESC, store_id LIMIT {num_stores}
    """,
    "households": """
        SELECT household_id FROM transactions GROUP BY household_id
        HAVING avg((store_id IN (FROM stores))::INTEGER) >= {store_share}
        ORDER BY count(*) DESC, household_id LIMIT {num_households}
    """,
    "bought": """
        SELECT DISTINCT product_id FROM transactions SEMI JOIN households USING (household_id) SEMI JOIN stores USING (store_id)
    """,
}
_CUTS = {
    "transactions": "FROM transactions SEMI JOIN households USING (household_id) SEMI JOIN stores USING (store_id) "
    "ORDER BY transaction_timestamp, basket_id, product_id",
    "promotions": "FROM promotions SEMI JOIN stores USING (store_id) SEMI JOIN bought USING (product_id) "
    "ORDER BY store_id, week, product_id",
    "products": "FROM products SEMI JOIN bought USING (product_id) ORDER BY product_id",
    "campaigns": "FROM campaigns SEMI JOIN households USING (household_id) ORDER BY campaign_id, household_id",
    "campaign_descriptions": "FROM campaign_descriptions ORDER BY campaign_id",
    "coupons": "FROM coupons SEMI JOIN bought USING (product_id) ORDER BY campaign_id, coupon_upc, product_id",
    "coupon_redemptions": "FROM coupon_redemptions SEMI JOIN households USING (household_id) "
    "ORDER BY redemption_date, household_id, coupon_upc",
    "demographics": "FROM demographics SEMI JOIN households USING (household_id) ORDER BY household_id",
}


def cut_sample(output: Path, *, num_stores: int = 8, num_households: int = 200, store_share: float = 0.6) -> dict[str, int]:
    """Writes the sample's Parquet files to `output`.

    Args:
        output: Folder to write to; it is created.
        num_stores: The busiest stores to keep.
        num_households: The most active households to keep.
        store_share: Least share of a household's purchases that must be in the kept stores.

    Returns:
        File name -> rows.
    """
    source = Recipe.load("completejourney").locate()
    output.mkdir(parents=True, exist_ok=True)
    rows = {}
    with duckdb.connect() as raw:
        for name in _CUTS:
            raw.execute(f"CREATE VIEW {name} AS FROM read_parquet('{source / name}.parquet')")
        for name, sql in _STEPS.items():
            values = {"num_stores": num_stores, "num_households": num_households, "store_share": store_share}
            raw.execute(f"CREATE TABLE {name} AS {sql.format(**values)}")
        for name, sql in _CUTS.items():
            target = output / f"{name}.parquet"
            raw.execute(f"COPY ({sql}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 19)")
            rows[target.name] = int(raw.execute(f"SELECT count(*) FROM '{target}'").fetchall()[0][0])
            logger.info("%s: %d rows, %d bytes", target.name, rows[target.name], target.stat().st_size)
    return rows


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write the Parquet files to")
    cut_sample(parser.parse_args().output)
