"""Bytes of the tables: precision and rows."""

from __future__ import annotations

from multifacet.pipeline.experiments.arm import Hashing
from multifacet.pipeline.experiments.catalogue.parts import both_facets, without_tables
from multifacet.pipeline.experiments.experiment import REFIT, Comparison, Experiment, Settings, mixed_name


def quantization(settings: Settings) -> Experiment:
    """The trained tables at every precision."""
    return Experiment(
        name="quantization",
        question="What does quantising the trained tables cost, or bring?",
        setting="Both facets, fine-tuned, then every row through the codec that serving uses. Nothing is trained again.",
        arms=(without_tables(), both_facets(settings)),
        quantized="both",
        comparisons=(
            Comparison(arm="int4", baseline="fp16", claim="INT4 raises ROC-AUC a little", expectation="higher", size=0.0003),
            Comparison(arm="int8", baseline="fp16", claim="INT8 changes nothing", expectation="no difference", by="us"),
        ),
    )


def precision_by_frequency(settings: Settings) -> Experiment:
    """More bits for rows that are read often, within a budget of bytes."""
    budgets = (1.15, 1.3, 1.6)
    return Experiment(
        name="precision-by-frequency",
        question="Do the bits that INT4 lacks belong to the ids that are seen often?",
        setting="Both facets, fine-tuned; then each row gets INT4, INT8 or FP16, so that the squared error, weighted by how "
        "often fine-tuning read the row, is least within the bytes. Nothing is trained again.",
        arms=(without_tables(), both_facets(settings)),
        quantized="both",
        budgets=budgets,
        comparisons=(
            *(
                Comparison(
                    arm=mixed_name(share),
                    baseline=REFIT,
                    claim=f"{share:g} times INT4's bytes, by frequency, beat uniform INT4 of the same rounding",
                    expectation="higher",
                    by="us",
                    size=0.0003,
                )
                for share in budgets
            ),
            Comparison(
                arm=REFIT,
                baseline="int4",
                claim="INT4 rounded by least squares beats INT4 rounded by minimum and maximum",
                expectation="higher",
                by="us",
                size=0.0003,
            ),
            Comparison(
                arm=mixed_name(budgets[-1]),
                baseline="int8",
                claim="mixed precision is as good as INT8 in fewer bytes",
                expectation="no difference",
                by="us",
            ),
        ),
    )


def collisions(settings: Settings) -> Experiment:
    """Hashed tables of fewer rows than ids."""
    shares = (1.0, 0.3, 0.1, 0.03)
    hashed = [
        both_facets(
            settings, name=f"hash{share:g}", title=f"hashed into {share:.0%} as many rows", hashing=Hashing(share=share)
        )
        for share in shares
    ]
    positions: dict[str, float | None] = {f"hash{share:g}": share for share in shares}
    return Experiment(
        name="collisions",
        question="How small can hashed tables be?",
        setting="Both facets, fine-tuned. Ids that share a row start from the mean of their vectors, and share its gradients.",
        arms=(
            without_tables(),
            both_facets(settings),
            *hashed,
            both_facets(
                settings,
                name="twohashes",
                title="hashed twice into 10% as many rows, the two rows summed",
                hashing=Hashing(share=0.1, num_hashes=2),
            ),
        ),
        comparisons=(
            *(
                Comparison(
                    arm=f"hash{share:g}",
                    baseline="both",
                    claim=f"hashing into {share:.0%} as many rows costs",
                    expectation="lower",
                    by="us",
                )
                for share in shares
            ),
            Comparison(arm="twohashes", baseline="hash0.1", claim="two hashes lose less", expectation="higher", by="us"),
        ),
        axis="rows of each table, as a share of its ids",
        positions=positions,
    )
