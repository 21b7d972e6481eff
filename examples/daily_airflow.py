"""A pipeline as an Airflow DAG, a run a day: put this file, or a link to it, into the folder of DAGs.

Each task is a plain call. MULTIFACET_PIPELINE names the pipeline's file.
"""

import os
from datetime import datetime

from airflow.sdk import dag, task

PIPELINE = os.environ.get("MULTIFACET_PIPELINE", "pipeline.toml")


@dag(schedule="@daily", start_date=datetime(2026, 11, 1), catchup=True, max_active_runs=1)
def multifacet_daily():
    """Load, pretrain, train, publish and roll out, day after day."""
    from multifacet.pipeline.daily import steps  # noqa: PLC0415 - it takes seconds, and a DAG is read every few

    @task
    def load(ds=None):
        steps.load(PIPELINE, ds)

    @task
    def pretrain(facet, ds=None):
        steps.pretrain(PIPELINE, ds, facet)

    @task
    def train(ds=None):
        steps.train_ranker(PIPELINE, ds)

    @task
    def publish(ds=None):
        steps.publish(PIPELINE, ds)

    @task
    def roll_out(ds=None):
        steps.roll_out(PIPELINE, ds)

    facets = pretrain.expand(facet=["contrastive", "kge"])
    load() >> facets >> train() >> publish() >> roll_out()


multifacet_daily()
