"""Where an experiment's interactions come from: The Complete Journey, a synthetic world, or a store of the user's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from multifacet.graphdb import GraphStore, Recipe
from multifacet.graphdb.recipe import Splits
from multifacet.graphdb.world import World, WorldConfig
from multifacet.pipeline import stages
from multifacet.pipeline.workspace import Say, Stage, Task
from multifacet.ranking import FeatureConfig

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
#: A world about as large as The Complete Journey's promoted part, whose truth is known.
WORLD = WorldConfig(num_users=4_000, num_pins=8_000, num_advertisers=400, num_edges=800_000, num_visits=40_000, days=364)


class Source(BaseModel):
    """A store with the tables of a ranking task, and the periods of its parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["completejourney", "world", "store"] = Field(description="what the store is made from")
    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="name of the source, also of its folder")
    title: str = Field(description="what the page calls it")
    path: Path | None = Field(default=None, description="folder of raw files, or the user's store")
    world: WorldConfig | None = Field(default=None, description="settings of the synthetic world")
    splits: Splits = Field(description="periods of pretraining, fine-tuning, validation and test")
    features: FeatureConfig = Field(default_factory=FeatureConfig, description="what the dense features count")
    onsite: tuple[str, ...] = Field(description="onsite relations from user to pin")
    offsite: tuple[str, ...] = Field(description="offsite relations from user to pin")

    @classmethod
    def journey(cls, folder: Path | None = None, *, is_sample: bool = False) -> Source:
        """The Complete Journey, or the sample of 200 households that comes with the project."""
        recipe = Recipe.load("completejourney")
        if recipe.splits is None:
            raise ValueError("recipe 'completejourney' declares no [splits], which a ranking task needs")
        return cls(
            kind="completejourney",
            name="completejourney-sample" if is_sample else "completejourney",
            title="The Complete Journey" + (", a sample of 200 households" if is_sample else ""),
            path=SAMPLE if is_sample else folder,
            splits=recipe.splits,
            onsite=("responds",),
            offsite=("buys", "redeems"),
        )

    @classmethod
    def of_world(cls, config: WorldConfig = WORLD, *, name: str = "world", title: str = "a synthetic world") -> Source:
        """A synthetic world."""
        return cls(
            kind="world",
            name=name,
            title=title,
            world=config,
            splits=config.splits,
            features=FeatureConfig(purchase_relations=("clicks", "converts")),
            onsite=("clicks",),
            offsite=("converts",),
        )

    @classmethod
    def of_store(cls, path: Path, splits: Splits) -> Source:
        """A store of the user's, with the tables periods, placements, responses, visits and purchases."""
        with GraphStore.open(path, read_only=True) as store:
            joining = [relation for relation in store.schema.relations if (relation.src, relation.dst) == ("user", "pin")]
        by_surface = {
            surface: tuple(relation.name for relation in joining if relation.surface == surface)
            for surface in ("onsite", "offsite")
        }
        return cls(
            kind="store",
            name=path.stem,
            title=str(path.name),
            path=path.resolve(),
            splits=splits,
            features=FeatureConfig(purchase_relations=tuple(relation.name for relation in joining if relation.timed)),
            onsite=by_surface["onsite"],
            offsite=by_surface["offsite"],
        )

    @property
    def relations(self) -> tuple[str, ...]:
        """All relations from user to pin."""
        return (*self.onsite, *self.offsite)

    def graph_task(self) -> Task:
        """The stage that makes the store, or names the user's."""
        if self.kind == "completejourney":
            recipe = Recipe.load("completejourney")
            return Task(
                name="graph",
                run=partial(stages.build_graph, recipe=recipe, source=self.path),
                config={"recipe": recipe.model_dump(mode="json"), "files": stages.source_fingerprint(recipe, self.path)},
                rooms=("graphdb",),
            )
        if self.world is not None:
            config: dict[str, Any] = self.world.model_dump(mode="json")
            return Task(name="graph", run=partial(_build_world, config=self.world), config=config, rooms=("graphdb",))
        path = self._store_path()
        with GraphStore.open(path, read_only=True) as store:
            fingerprint = store.view().fingerprint
        config = {"store": str(path), "fingerprint": fingerprint}
        return Task(name="graph", run=partial(_name_store, fingerprint=fingerprint), config=config, rooms=("graphdb",))

    def store(self, graph: Stage) -> Path:
        """Path of the store, once its stage is made."""
        return self._store_path() if self.kind == "store" else graph.path / stages.STORE

    def _store_path(self) -> Path:
        if self.path is None:
            raise ValueError(f"source {self.name!r} names no store; give its path")
        return self.path


def make_world(name: str, *, is_small: bool = False) -> Source:
    """One of the synthetic worlds that experiments know by name.

    Args:
        name: "world", "world-noise" (half of the interactions are noise) or "world-silent" (interests play no part).
        is_small: Whether to make it small enough to run in minutes.

    Raises:
        ValueError: Another name.
    """
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "world": ("a synthetic world", {}),
        "world-noise": ("a synthetic world, half of it noise", {"noise_share": 0.5}),
        "world-silent": ("a synthetic world without interests", {"interest_strength": 0.0}),
    }
    if name not in changes:
        raise ValueError(f"no world {name!r}; there are {', '.join(changes)}")
    title, fields = changes[name]
    if is_small:
        small = {"num_users": 500, "num_pins": 800, "num_advertisers": 50, "num_edges": 60_000, "num_visits": 6_000}
        return Source.of_world(WORLD.model_copy(update={**fields, **small}), name=f"{name}-small", title=f"{title}, small")
    return Source.of_world(WORLD.model_copy(update=fields), name=name, title=title)


def _build_world(directory: Path, say: Say, *, config: WorldConfig) -> dict[str, Any]:
    say(f"{config.num_edges:,} edges")
    world = World.generate(config, directory / "world")
    world.build_store(directory / stages.STORE)
    with GraphStore.open(directory / stages.STORE, read_only=True) as store:
        return {**store.counts(), "fingerprint": store.view().fingerprint}


def _name_store(directory: Path, say: Say, *, fingerprint: str) -> dict[str, Any]:
    del directory, say  # the user's store stays where it is
    return {"fingerprint": fingerprint}
