"""Which tables help: by facet, surface, kind of id, model, and whether they go on learning."""

from __future__ import annotations

from multifacet.pipeline.experiments.arm import FROZEN_TRIALS, TABLE_TRIALS, THAWED_TRIALS, Arm, Facet
from multifacet.pipeline.experiments.catalogue.parts import (
    FACETS,
    both_facets,
    contrastive_facet,
    kge_facet,
    lightgcn_facet,
    without_tables,
)
from multifacet.pipeline.experiments.experiment import Comparison, Experiment, Settings

_PAIR_COUNTS = ("log_user_pin_",)
#: Kind of source -> its relations that do not join a user and a pin.
_OTHER_RELATIONS = {
    "completejourney": ("made_by", "in", "covers", "targets"),
    "world": ("made_by", "in"),
}


def ablation(settings: Settings, *, without: tuple[str, ...] = (), name: str = "ablation") -> Experiment:
    """None, scratch, contrastive, KGE, both; and arms that could explain a gain away."""
    contrastive, kge = contrastive_facet(settings), kge_facet(settings)
    tables = {"trials": TABLE_TRIALS, "without": without}
    arms = (
        without_tables(without=without),
        Arm(name="scratch", title="tables from scratch", scratch=FACETS, **tables),
        Arm(
            name="history",
            title="tables from scratch, trained on pretraining's weeks too",
            scratch=FACETS,
            history=True,
            **tables,
        ),
        Arm(name="contrastive", title="contrastive, fine-tuned", facets=(contrastive,), **tables),
        Arm(name="kge", title="KGE, fine-tuned", facets=(kge,), **tables),
        both_facets(settings, without=without),
        Arm(
            name="shuffled",
            title="both, vectors of other ids",
            facets=(contrastive.model_copy(update={"shuffled": True}), kge.model_copy(update={"shuffled": True})),
            **tables,
        ),
        Arm(
            name="twice",
            title="two contrastive tables of two seeds",
            facets=(contrastive, contrastive_facet(settings, "contrastive2", seed_offset=1000)),
            **tables,
        ),
        Arm(
            name="wide",
            title="one contrastive table of twice the width",
            facets=(contrastive_facet(settings, dim=128),),
            ranking={"dim": 128},
            **tables,
        ),
    )
    comparisons = (
        Comparison(arm="scratch", baseline="none", claim="tables from scratch change nothing", expectation="no difference"),
        Comparison(
            arm="contrastive", baseline="scratch", claim="contrastive pretraining helps", expectation="higher", size=0.0003
        ),
        Comparison(arm="kge", baseline="scratch", claim="KGE pretraining helps", expectation="higher", size=0.0006),
        Comparison(arm="both", baseline="scratch", claim="both together help", expectation="higher", size=0.0009),
        Comparison(arm="both", baseline="contrastive", claim="KGE adds to contrastive", expectation="higher", size=0.0006),
        Comparison(arm="both", baseline="none", claim="pretrained tables beat none at all", expectation="higher", by="us"),
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


def existing(settings: Settings) -> Experiment:
    """The facets beside an embedding that is there already: do they add to it, or overlap with it?"""
    known = lightgcn_facet(settings)
    # The existing embedding stays as it is, as another team's does.
    ranking = {"facet_lrs": {known.name: 0.0}, "features": ("user", "pin")}
    contrastive, kge = contrastive_facet(settings), kge_facet(settings)

    def beside(name: str, title: str, *facets: Facet, scratch: tuple[str, ...] = ()) -> Arm:
        return Arm(name=name, title=title, facets=(known, *facets), scratch=scratch, ranking=ranking, trials=TABLE_TRIALS)

    return Experiment(
        name="existing",
        question="Where a company has graph embeddings already, what do tables add?",
        setting="A LightGCN facet of users and pins stands for the existing embedding, frozen; the facets beside it are "
        "fine-tuned.",
        arms=(
            without_tables(),
            Arm(
                name="existing",
                title="LightGCN, frozen",
                facets=(known,),
                ranking={"features": ("user", "pin")},
                trials=FROZEN_TRIALS,
            ),
            beside("scratch", "LightGCN, and tables from scratch", scratch=FACETS),
            beside("contrastive", "LightGCN, and contrastive", contrastive),
            beside("kge", "LightGCN, and KGE", kge),
            beside("both", "LightGCN, contrastive and KGE", contrastive, kge),
        ),
        comparisons=(
            Comparison(
                arm="scratch",
                baseline="existing",
                claim="tables from scratch add nothing to an existing embedding",
                expectation="no difference",
            ),
            Comparison(arm="both", baseline="existing", claim="pretrained tables do", expectation="higher", size=0.0009),
            Comparison(
                arm="contrastive", baseline="existing", claim="contrastive tables do", expectation="higher", size=0.0003
            ),
            Comparison(arm="kge", baseline="existing", claim="KGE tables do", expectation="higher", size=0.0006),
        ),
    )


def surfaces(settings: Settings) -> Experiment:
    """Both facets pretrained on onsite edges, on offsite edges, or on both."""
    source = settings.source
    rest = tuple(_OTHER_RELATIONS[source.kind]) if source.kind in _OTHER_RELATIONS else ()
    arms = [without_tables(), both_facets(settings)]
    for name, relations in (("onsite", source.onsite), ("offsite", source.offsite)):
        facets = tuple(
            facet.model_copy(update={"relations": (*relations, *rest)})
            for facet in (contrastive_facet(settings), kge_facet(settings))
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
    arms = [without_tables(), both_facets(settings)]
    arms += [
        both_facets(settings, name=feature, title=f"both facets, {feature} ids only", ranking={"features": (feature,)})
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
            without_tables(),
            both_facets(settings),
            both_facets(settings, name="frozen", title="contrastive and KGE, frozen", trials=FROZEN_TRIALS),
            both_facets(settings, name="thawed", title="contrastive and KGE, frozen for the first steps", trials=THAWED_TRIALS),
            both_facets(
                settings,
                name="attention",
                title="fine-tuned, the other ids attending over the facets",
                ranking={"combination": "attention"},
            ),
            both_facets(settings, name="gating", title="fine-tuned, the facets gated", ranking={"combination": "gating"}),
        ),
        comparisons=(
            Comparison(arm="both", baseline="frozen", claim="fine-tuning beats freezing", expectation="higher"),
            Comparison(arm="frozen", baseline="none", claim="frozen tables help too", expectation="higher", by="us"),
            Comparison(
                arm="attention", baseline="both", claim="attention over the facets beats joining them", expectation="higher"
            ),
            Comparison(arm="gating", baseline="both", claim="so does gating", expectation="higher", by="us"),
            Comparison(
                arm="thawed",
                baseline="both",
                claim="tables that wait for the upper model do better",
                expectation="higher",
                by="us",
            ),
        ),
    )


def kge_models(settings: Settings) -> Experiment:
    """Each KGE model as the only facet."""
    arms = [without_tables()]
    names = ("transe", "transr", "transra", "distmult", "complex", "rotate")
    for name in names:
        facet = kge_facet(settings)
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


def sharing(settings: Settings) -> Experiment:
    """One table for the pin's id and the user's sequence of pins, or two."""
    length = 20

    def with_sequence(name: str, title: str, **ranking: object) -> Arm:
        return both_facets(settings, name=name, title=title, recent_pins=length, ranking={"sequence": "attention", **ranking})

    return Experiment(
        name="sharing",
        question="Should the user's recent pins read the same table as the candidate pin, or one of their own?",
        setting=f"Both facets, fine-tuned. The {length} most recent pins of a user are pooled by the candidate's attention.",
        arms=(
            without_tables(),
            both_facets(settings),
            with_sequence("shared", "and recent pins, from the same tables", sequence_table="shared"),
            with_sequence("separate", "and recent pins, from tables of their own", sequence_table="separate"),
        ),
        comparisons=(
            Comparison(arm="shared", baseline="both", claim="recent pins help", expectation="higher", by="us"),
            Comparison(
                arm="shared", baseline="separate", claim="one table is as good as two", expectation="no difference", by="us"
            ),
        ),
    )
