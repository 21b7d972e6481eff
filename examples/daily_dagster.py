"""A pipeline as Dagster assets, one partition a day: `dagster dev -f examples/daily_dagster.py`.

Each asset is a plain call. MULTIFACET_PIPELINE names the pipeline's file.
"""

import os

from dagster import DailyPartitionsDefinition, Definitions, asset, define_asset_job

from multifacet.pipeline.daily import steps

PIPELINE = os.environ.get("MULTIFACET_PIPELINE", "pipeline.toml")
DAYS = DailyPartitionsDefinition(start_date=os.environ.get("MULTIFACET_FIRST_DAY", "2026-11-01"))


@asset(partitions_def=DAYS)
def loaded(context) -> None:
    """The day's files are in the store."""
    steps.load(PIPELINE, context.partition_key)


@asset(partitions_def=DAYS, deps=[loaded])
def contrastive(context) -> str:
    """Contrastive tables."""
    return str(steps.pretrain(PIPELINE, context.partition_key, "contrastive"))


@asset(partitions_def=DAYS, deps=[loaded])
def kge(context) -> str:
    """Tables of the knowledge graph."""
    return str(steps.pretrain(PIPELINE, context.partition_key, "kge"))


@asset(partitions_def=DAYS, deps=[contrastive, kge])
def ranker(context) -> str:
    """The ranker."""
    return str(steps.train_ranker(PIPELINE, context.partition_key))


@asset(partitions_def=DAYS, deps=[ranker])
def release(context) -> str:
    """The release, if no gate stops it."""
    context.log.info("%s", steps.judge(PIPELINE, context.partition_key)["stops"])
    return str(steps.publish(PIPELINE, context.partition_key))


@asset(partitions_def=DAYS, deps=[release])
def rollout(context) -> None:
    """The servers serve it."""
    steps.roll_out(PIPELINE, context.partition_key)


ASSETS = [loaded, contrastive, kge, ranker, release, rollout]
defs = Definitions(assets=ASSETS, jobs=[define_asset_job("daily", selection=ASSETS)])
