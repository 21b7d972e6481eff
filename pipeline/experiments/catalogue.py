"""The experiments: the paper's, its open questions, and the arms that keep both honest."""

from __future__ import annotations

from collections.abc import Callable

from contrastive import ComposedTower, ContrastiveConfig
from kge import KgeConfig
from pipeline.experiments.arm import FROZEN_TRIALS, TABLE_TRIALS, UPPER_TRIALS, Arm, Facet, Hashing
from pipeline.experiments.experiment import Comparison, Experiment, Settings

_PAIR_COUNTS = ("log_user_pin_",)
_MONTH_PERIODS = 4
_BOTH = ("contrastive", "kge")


def _epochs(default: int, settings: Settings) -> int:
    return max(1, round(default * settings.pretraining_share))


def _contrastive(settings: Settings, name: str = "contrastive", *, dim: int = 64, **window: int) -> Facet:
    config = ContrastiveConfig(composed=(ComposedTower(node_type="advertiser", through="made_by"),), dim=dim)
    config = config.model_copy(update={"epochs": _epochs(config.epochs, settings)})
    return Facet.model_validate(
        {"name": name, "pretrainer": config, "until_period": settings.source.splits.training[0], **window}
    )


def _kge(settings: Settings, name: str = "kge", **window: int) -> Facet:
    config = KgeConfig()
    config = config.model_copy(update={"epochs": _epochs(config.epochs, settings)})
    return Facet.model_validate(
        {"name": name, "pretrainer": config, "until_period": settings.source.splits.training[0], **window}
    )


def _none(**fields: object) -> Arm:
    return Arm.model_validate({"name": "none", "title": "no id tables", "trials": UPPER_TRIALS, **fields})


def _both(settings: Settings, **fields: object) -> Arm:
    facets = (_contrastive(settings), _kge(settings))
    return Arm.model_validate(
        {
            "name": "both",
            "title": "contrastive and KGE, fine-tuned",
            "facets": facets,
            "trials": TABLE_TRIALS,
            "export": True,
            **fields,
        }
    )


def ablation(settings: Settings, *, without: tuple[str, ...] = (), name: str = "ablation") -> Experiment:
    """None, scratch, contrastive, KGE, both; and arms that could explain a gain away."""
    contrastive, kge = _contrastive(settings), _kge(settings)
    tables = {"trials": TABLE_TRIALS, "without": without}
    arms = (
        _none(without=without),
        Arm(name="scratch", title="tables from scratch", scratch=_BOTH, **tables),
        Arm(
            name="history",
            title="tables from scratch, trained on pretraining's weeks too",
            scratch=_BOTH,
            history=True,
            **tables,
        ),
        Arm(name="contrastive", title="contrastive, fine-tuned", facets=(contrastive,), **tables),
        Arm(name="kge", title="KGE, fine-tuned", facets=(kge,), **tables),
        _both(settings, without=without),
        Arm(
            name="shuffled",
            title="both, vectors of other ids",
            facets=(contrastive.model_copy(update={"shuffled": True}), kge.model_copy(update={"shuffled": True})),
            **tables,
        ),
        Arm(
            name="twice",
            title="two contrastive tables of two seeds",
            facets=(contrastive, _contrastive(settings, "contrastive2", seed_offset=1000)),
            **tables,
        ),
        Arm(
            name="wide",
            title="one contrastive table of twice the width",
            facets=(_contrastive(settings, dim=128),),
            ranking={"dim": 128},
            **tables,
        ),
    )
    comparisons = (
        Comparison(arm="scratch", baseline="none", claim="tables from scratch change nothing", expectation="no difference"),
        Comparison(arm="contrastive", baseline="scratch", claim="contrastive pretraining helps", expectation="higher"),
        Comparison(arm="kge", baseline="scratch", claim="KGE pretraining helps", expectation="higher"),
        Comparison(arm="both", baseline="scratch", claim="both together help", expectation="higher"),
        Comparison(arm="both", baseline="contrastive", claim="KGE adds to contrastive", expectation="higher"),
        Comparison(
            arm="both", baseline="history", claim="it is the objectives, not only more history", expectation="higher", by="us"
        ),
        Comparison(
            arm="both", baseline="twice", claim="it is the second facet, not a second table", expectation="higher", by="us"
        ),
        Comparison(arm="both", baseline="wide", claim="it is the second facet, not the width", expectation="higher", by="us"),
        Comparison(arm="both", baseline="shuffled", claim="it is the vectors' knowledge", expectation="higher", by="us"),
    )
    features = "all dense features but the user-pin counts" if without else "all dense features"
    return Experiment(
        name=name,
        question="Do pretrained id tables help where tables from scratch do not, and do two kinds help more than one?",
        setting=f"Dense features: {features}. Pretraining sees only the periods before fine-tuning.",
        arms=arms,
        comparisons=comparisons,
    )


def ablation_without_pair_counts(settings: Settings) -> Experiment:
    """The ablation where no dense feature tells of a user's own purchases of the pin."""
    return ablation(settings, without=_PAIR_COUNTS, name="ablation-no-pair-counts")


def surfaces(settings: Settings) -> Experiment:
    """Both facets pretrained on onsite edges, on offsite edges, or on both."""
    source = settings.source
    rest = tuple(_OTHER_RELATIONS[source.kind]) if source.kind in _OTHER_RELATIONS else ()
    arms = [_none(), _both(settings)]
    for name, relations in (("onsite", source.onsite), ("offsite", source.offsite)):
        facets = tuple(
            facet.model_copy(update={"relations": (*relations, *rest)}) for facet in (_contrastive(settings), _kge(settings))
        )
        arms.append(Arm(name=name, title=f"both, {name} edges only", facets=facets, trials=TABLE_TRIALS))
    return Experiment(
        name="surfaces",
        question="Which edges carry the gain: onsite engagement, offsite conversions, or both?",
        setting="Both facets, fine-tuned; pretraining sees user-pin edges of one surface or both, and all other relations.",
        arms=tuple(arms),
        comparisons=(
            Comparison(arm="both", baseline="onsite", claim="offsite edges add to onsite ones", expectation="higher"),
            Comparison(arm="both", baseline="offsite", claim="onsite edges add to offsite ones", expectation="higher", by="us"),
        ),
    )


def features(settings: Settings) -> Experiment:
    """Tables for one kind of id at a time."""
    arms = [_none(), _both(settings)]
    arms += [
        _both(settings, name=feature, title=f"both facets, {feature} ids only", ranking={"features": (feature,)})
        for feature in ("user", "pin", "advertiser")
    ]
    return Experiment(
        name="features",
        question="Which ids' tables carry the gain?",
        setting="Both facets, fine-tuned, with tables for all ids or for one kind of id. Products of users and pins need both.",
        arms=tuple(arms),
        comparisons=tuple(
            Comparison(
                arm="both", baseline=feature, claim=f"all ids help more than {feature} ids alone", expectation="higher", by="us"
            )
            for feature in ("user", "pin", "advertiser")
        ),
    )


def freezing(settings: Settings) -> Experiment:
    """Fine-tuned against frozen."""
    return Experiment(
        name="freezing",
        question="Must pretrained tables be fine-tuned, or can they stay as they are?",
        setting="Both facets. Frozen tables are tuned over the length of their rows, others over their step and length.",
        arms=(
            _none(),
            _both(settings),
            _both(settings, name="frozen", title="contrastive and KGE, frozen", trials=FROZEN_TRIALS),
        ),
        comparisons=(
            Comparison(arm="both", baseline="frozen", claim="fine-tuning beats freezing", expectation="higher"),
            Comparison(arm="frozen", baseline="none", claim="frozen tables help too", expectation="higher", by="us"),
        ),
    )


def quantization(settings: Settings) -> Experiment:
    """The trained tables at every precision."""
    return Experiment(
        name="quantization",
        question="What does quantising the trained tables cost, or bring?",
        setting="Both facets, fine-tuned, then every row through the codec that serving uses. Nothing is trained again.",
        arms=(_none(), _both(settings)),
        quantized="both",
        comparisons=(
            Comparison(arm="int4", baseline="fp16", claim="INT4 raises ROC-AUC a little (+0.03%)", expectation="higher"),
            Comparison(arm="int8", baseline="fp16", claim="INT8 changes nothing", expectation="no difference", by="us"),
        ),
    )


def staleness(settings: Settings) -> Experiment:
    """Pretraining that ended months before fine-tuning, over windows of one length."""
    splits = settings.source.splits
    start, end = splits.pretraining[0], splits.training[0]
    months = [months for months in (0, 1, 3, 6, 12) if end - months * _MONTH_PERIODS - start >= 2 * _MONTH_PERIODS]
    length = end - max(months) * _MONTH_PERIODS - start
    arms = [_none(), Arm(name="scratch", title="tables from scratch", scratch=_BOTH, trials=TABLE_TRIALS)]
    for number in months:
        until = end - number * _MONTH_PERIODS
        window = {"until_period": until, "since_period": until - length}
        facets = tuple(facet.model_copy(update=window) for facet in (_contrastive(settings), _kge(settings)))
        title = f"both, pretraining ended {number} months before" if number else "both, pretraining ended just before"
        arms.append(Arm(name=f"months{number}", title=title, facets=facets, trials=TABLE_TRIALS))
    oldest = months[-1]
    return Experiment(
        name="staleness",
        question="How fast does a pretrained table lose its worth?",
        setting=f"Both facets, fine-tuned, pretrained on windows of {length} periods that end some months (of four "
        "periods) before fine-tuning begins.",
        arms=tuple(arms),
        comparisons=(
            *(
                Comparison(
                    arm=f"months{number}",
                    baseline="months0",
                    claim=f"{number} months of staleness cost ROC-AUC",
                    expectation="lower",
                    by="paper" if number >= 3 else "us",
                )
                for number in months[1:]
            ),
            Comparison(arm="months0", baseline="scratch", claim="fresh tables help", expectation="higher"),
            Comparison(
                arm=f"months{oldest}",
                baseline="scratch",
                claim=f"after {oldest} months the gain is gone",
                expectation="no difference",
                by="paper" if oldest >= 6 else "us",
            ),
        ),
        axis="months between pretraining and fine-tuning",
        positions={f"months{number}": float(number) for number in months},
    )


def collisions(settings: Settings) -> Experiment:
    """Hashed tables of fewer rows than ids."""
    shares = (1.0, 0.3, 0.1, 0.03)
    hashed = [
        _both(settings, name=f"hash{share:g}", title=f"hashed into {share:.0%} as many rows", hashing=Hashing(share=share))
        for share in shares
    ]
    return Experiment(
        name="collisions",
        question="How small can hashed tables be?",
        setting="Both facets, fine-tuned. Ids that share a row start from the mean of their vectors, and share its gradients.",
        arms=(_none(), _both(settings), *hashed),
        comparisons=tuple(
            Comparison(
                arm=f"hash{share:g}",
                baseline="both",
                claim=f"hashing into {share:.0%} as many rows costs",
                expectation="lower",
                by="us",
            )
            for share in shares
        ),
        axis="rows of each table, as a share of its ids",
        positions={f"hash{share:g}": share for share in shares},
    )


def kge_models(settings: Settings) -> Experiment:
    """Each KGE model as the only facet."""
    arms = [_none()]
    names = ("transe", "transr", "transra", "distmult", "complex", "rotate")
    for name in names:
        facet = _kge(settings)
        facet = facet.model_copy(update={"pretrainer": facet.pretrainer.model_copy(update={"model": name})})
        arms.append(Arm(name=name, title=f"KGE by {name}, fine-tuned", facets=(facet,), trials=TABLE_TRIALS))
    return Experiment(
        name="kge-models",
        question="Which KGE model makes the best tables, and does link prediction tell?",
        setting="One KGE facet, fine-tuned, of the same width and epochs for every model. Held-out MRR stands beside ROC-AUC.",
        arms=tuple(arms),
        comparisons=tuple(
            Comparison(arm=name, baseline="none", claim=f"{name} tables help", expectation="higher", by="us") for name in names
        ),
    )


_OTHER_RELATIONS = {
    "completejourney": ("made_by", "in", "covers", "targets"),
    "world": ("made_by", "in"),
}

#: Name -> how it is made. The order is the page's.
CATALOGUE: dict[str, Callable[[Settings], Experiment]] = {
    "ablation": ablation,
    "ablation-no-pair-counts": ablation_without_pair_counts,
    "freezing": freezing,
    "quantization": quantization,
    "staleness": staleness,
    "collisions": collisions,
    "surfaces": surfaces,
    "features": features,
    "kge-models": kge_models,
}
