"""Reads a pipeline's file, and refuses what is wrong with it all at once, by section, before anything runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from multifacet.contrastive import ContrastiveConfig
from multifacet.graphdb import GraphSchema, GraphStore, Recipe
from multifacet.inputs import Configuration, ConfigurationError
from multifacet.pipeline.daily import config as sections
from multifacet.pipeline.daily.config import Pipeline

__all__ = ["read_pipeline"]

_TABLES: Final[dict[str, type[Configuration]]] = {
    "store": sections.StoreSection,
    "ranker": sections.RankerSection,
    "evaluate": sections.EvaluateSection,
    "gates": sections.GatesSection,
    "release": sections.ReleaseSection,
    "rollout": sections.RolloutSection,
}
_CLASSES: Final = re.compile(r"^((\w+Section|Pipeline): )+")
_PATHS: Final = {
    "store": ("path", "source", "schema", "folder"),
    "rollout": ("token_file", "state", "tls_ca", "tls_certificate", "tls_key"),
}


def read_pipeline(path: str | Path) -> Pipeline:
    """Reads a pipeline's file; paths in it are relative to it.

    Args:
        path: The TOML file.

    Returns:
        The pipeline, whose relations, tables and files were looked for as far as they can be known before a run.

    Raises:
        ConfigurationError: Something is wrong; each fault is named with its section. Or the file is not TOML.
        OSError: The file cannot be read.
    """
    path = Path(path)
    document = _resolved(_read_toml(path), path.resolve().parent)
    faults = _find_faults(document)
    if not faults:
        try:
            pipeline = Pipeline.model_validate(document)
        except ConfigurationError as error:
            faults.append(_bare(error))
        else:
            faults = _find_strangers(pipeline)
            if not faults:
                return pipeline
    raise ConfigurationError(f"{path}: {'; '.join(faults)}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error


def _resolved(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Makes the paths absolute."""

    def absolute(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) else value

    def absolute_address(value: Any) -> Any:
        if not isinstance(value, str) or value.startswith("iceberg:"):
            return value
        kind = next((kind for kind in ("delta:", "sqlite:///") if value.startswith(kind)), "")
        rest = value.removeprefix(kind)
        return value if "://" in rest else f"{kind}{absolute(rest)}"

    places = {"files": absolute, "address": absolute_address}
    changed = dict(document)
    for section, names in _PATHS.items():
        if isinstance(changed.get(section), Mapping):
            changed[section] = {key: absolute(value) if key in names else value for key, value in changed[section].items()}
    store = changed.get("store")
    if isinstance(store, dict) and str(store.get("recipe", "")).endswith(".toml"):
        store["recipe"] = absolute(store["recipe"])
    if isinstance(changed.get("load"), list):
        changed["load"] = [
            {**entry, **{key: resolve(entry[key]) for key, resolve in places.items() if key in entry}}
            if isinstance(entry, Mapping)
            else entry
            for entry in changed["load"]
        ]
    ranker = changed.get("ranker")
    if isinstance(ranker, dict) and isinstance(ranker.get("examples"), dict) and "files" in ranker["examples"]:
        ranker["examples"] = {**ranker["examples"], "files": absolute(ranker["examples"]["files"])}
    return changed


def _find_faults(document: Mapping[str, Any]) -> list[str]:
    """Names what is wrong within each section."""
    known = tuple(Pipeline.model_fields)
    faults = []
    for name in document:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            faults.append(f"there is no section or key [{name}]" + (f"; did you mean [{close[0]}]?" if close else ""))
    faults += [f"the section [{name}] is missing" for name in ("store", "ranker") if name not in document]
    for name, kind in _TABLES.items():
        if name in document:
            faults += _faults_of(f"[{name}]", kind, document[name])
    return faults + _faults_of_lists(document)


def _faults_of_lists(document: Mapping[str, Any]) -> list[str]:
    """Names what is wrong with loads and facets, of which there may be several."""
    faults: list[str] = []
    loads = document.get("load", [])
    if not isinstance(loads, list):
        faults.append("[load]: each is an entry of a list: write [[load]]")
    else:
        for number, fields in enumerate(loads, start=1):
            faults += _faults_of(f"[[load]] {number}", sections.LoadSection, fields)
    facets = document.get("facets", {})
    if not isinstance(facets, Mapping):
        faults.append("[facets]: expected a section for each, such as [facets.kge]")
    else:
        for name, fields in facets.items():
            faults += _faults_of(f"[facets.{name}]", sections.FacetSection, fields)
    return faults


def _faults_of(section: str, kind: type[Configuration], fields: Any) -> list[str]:
    if not isinstance(fields, Mapping):
        return [f"{section}: expected a section, got {fields!r}"]
    try:
        kind.model_validate(fields)
    except ConfigurationError as error:
        return [f"{section} {_bare(error)}"]
    return []


def _bare(error: ConfigurationError) -> str:
    """Gives an error's text without the names of our classes."""
    return _CLASSES.sub("", str(error))


def _find_strangers(pipeline: Pipeline) -> list[str]:
    """Names what a pipeline asks for and its store, its files or this machine does not have."""
    schema, tables = _schema(pipeline)
    if schema is None:
        path = pipeline.store.path
        return [f"[store] {path} does not exist: say what to make it from, by recipe = ... or schema = ..."]
    faults = []
    relations, nodes = [relation.name for relation in schema.relations], [node.name for node in schema.nodes]
    for number, load in enumerate(pipeline.load, start=1):
        if load.relation is not None and load.relation not in relations:
            faults.append(f"[[load]] {number} relation {load.relation!r} is none of the store's {relations}")
        if load.nodes is not None and load.nodes not in nodes:
            faults.append(f"[[load]] {number} nodes {load.nodes!r} is none of the store's {nodes}")
        if load.table is not None:
            tables.add(load.table)
    for name, facet in pipeline.facets.items():
        strange = [relation for relation in facet.relations or () if relation not in relations]
        if strange:
            faults.append(f"[facets.{name}] relations names {strange}; the store has {relations}")
    faults += _find_missing_tables(pipeline, nodes)
    if pipeline.ranker.examples is None:
        faults += _find_missing_periods(pipeline, relations, tables)
    if pipeline.rollout is not None and not pipeline.rollout.token_file.is_file():
        faults.append(
            f"[rollout] token_file {pipeline.rollout.token_file} does not exist: write the servers' admin token there"
        )
    return faults


def _find_missing_periods(pipeline: Pipeline, relations: list[str], tables: set[str]) -> list[str]:
    """Names what examples of a store's periods need and the store does not have."""
    faults = []
    missing = [name for name in ("periods", "placements", "responses", "visits", "purchases") if name not in tables]
    if missing:
        faults.append(
            f"[ranker] the store has no table {missing[0]!r}, which examples of periods need: load it by [[load]] table = "
            f"{missing[0]!r}, or name labelled rows in [ranker.examples]"
        )
    strange = [relation for relation in pipeline.ranker.features.purchase_relations if relation not in relations]
    if strange:
        faults.append(f"[ranker] features.purchase_relations names {strange}; the store has {relations}")
    return faults


def _find_missing_tables(pipeline: Pipeline, nodes: list[str]) -> list[str]:
    """Names the ranker's features of which a facet learns no table."""
    ranker, faults = pipeline.ranker.config(tuple(pipeline.facets)), []
    for name in ranker.pretrained_facets:
        config = pipeline.facets[name].config(warm=False) if name in pipeline.facets else None
        if not isinstance(config, ContrastiveConfig):
            continue
        learned = {config.query_type, config.item_type, *(tower.node_type for tower in config.composed)}
        missing = [
            feature
            for feature in ranker.features
            if ranker.node_type(feature) in nodes and ranker.node_type(feature) not in learned
        ]
        faults += [
            f"[facets.{name}] learns no table of {feature!r}, which the ranker reads: add settings.composed = [{{ node_type = "
            f"'{ranker.node_type(feature)}', through = 'RELATION' }}], or leave it out of [ranker] settings.features"
            for feature in missing
        ]
    return faults


def _schema(pipeline: Pipeline) -> tuple[GraphSchema | None, set[str]]:
    """Gives the schema that the store has or will have, and the names of its plain tables."""
    store = pipeline.store
    if store.path.exists():
        with GraphStore.open(store.path, read_only=True) as graph:
            found = graph.sql("SELECT table_name FROM information_schema.tables")
            return graph.schema, set(found["table_name"].to_pylist())
    if store.recipe is not None:
        recipe = Recipe.load(store.recipe)
        recipe.locate(store.source)
        return recipe.graph_schema, set(recipe.tables)
    if store.graph_schema is not None:
        return GraphSchema.from_toml(store.graph_schema), set()
    return None, set()
