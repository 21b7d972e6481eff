"""Recall@20 on Gowalla's validation pairs with each ingredient of contrastive training switched off, one at a time.

Each row is one fit on the training pairs with fewer epochs than the benchmark contrastive_quality has, ranked on the validation
pairs; the peer is the fit with everything on. Runs are cached like those of contrastive_quality.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from benchmarks.contrastive.contrastive_quality import CONFIG, NDCG, RECALL, cached
from benchmarks.harness import Peer, Row
from multifacet.contrastive import PositiveWalks

_EPOCHS: Final = 3
_WITHOUT: Final[dict[str, dict[str, Any]]] = {
    "all, and walks": {"walks": PositiveWalks()},
    "without out-of-batch negatives": {"num_uniform": 0},
    "without logQ": {"logq": False},
    "without masking": {"mask_known": False},
}


def run(quick: bool) -> Iterator[Row]:
    """Two fits of one epoch when quick, else five of three."""
    base = CONFIG.model_copy(update={"epochs": 1 if quick else _EPOCHS})
    variants: dict[str, dict[str, Any]] = {"all": {}, **_WITHOUT}
    whole: dict[str, float] = {}
    for case in list(variants)[: 2 if quick else None]:
        config = base.model_copy(update=variants[case])
        metrics = cached(config, final=False)
        whole = whole or metrics
        for metric, name in ((RECALL, "recall@20"), (NDCG, "ndcg@20")):
            yield Row(
                case=case,
                metric=metric,
                value=metrics[name],
                peer=Peer(name="all", value=whole[name]),
                config={"changed": sorted(variants[case]), "contrastive": config.model_dump(mode="json"), "metrics": metrics},
            )
