"""A snapshot's card: what it holds, what it was made of, what it does not know; a model card of Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multifacet.tables import Snapshot, TableDrift

__all__ = ["make_card"]

_OBJECTIVE = (
    "model",
    "preset",
    "loss",
    "similarity",
    "distance",
    "dim",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "margin",
    "seed",
)
_MAX_LISTED = 12


def make_card(
    snapshot: Snapshot,
    *,
    name: str,
    license: str = "other",  # noqa: A002 - what it is called in a card
    drift: Mapping[str, TableDrift] | None = None,
) -> str:
    """Write the card of a snapshot from its lineage.

    Args:
        snapshot: the snapshot.
        name: its title.
        license: an identifier of Hugging Face's list, such as "apache-2.0".
        drift: how far its tables are from an older snapshot's, if that is to be told.

    Returns:
        Markdown behind a YAML header, which `huggingface_hub.ModelCard` reads.
    """
    header = {
        "license": license,
        "library_name": "multifacet",
        "tags": ["embeddings", "multifacet", snapshot.facet],
        "model-index": _results(snapshot, name),
    }
    # JSON is YAML: a value that looks like a date or a number stays a string.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items() if value), "---", f"# {_plain(name)}", ""]
    lines += _tables(snapshot) + _data(snapshot) + _objective(snapshot) + _metrics(snapshot)
    lines += _drift(snapshot, drift) + _limits(snapshot) + _use(snapshot)
    return "\n".join(lines) + "\n"


def _tables(snapshot: Snapshot) -> list[str]:
    rows = [
        [node_type, f"{snapshot.num_rows(node_type):,}", str(snapshot.dim(node_type)), f"{snapshot.num_untrained(node_type):,}"]
        for node_type in snapshot.node_types
    ]
    said = f"Embedding tables by external id, of the facet `{snapshot.facet}`. Fingerprint: `{snapshot.fingerprint}`."
    return [said, "", *_grid(["node type", "rows", "width", "rows never trained"], rows), ""]


def _data(snapshot: Snapshot) -> list[str]:
    rows = [[key, _brief(value)] for key, value in snapshot.window.items()]
    rows += [["parent", f"`{parent}`"] for parent in snapshot.parents]
    return ["## Data", "", *(_grid(["window", ""], rows) if rows else ["The snapshot does not say what it was made of."]), ""]


def _objective(snapshot: Snapshot) -> list[str]:
    config = snapshot.config
    rows = [[key, _brief(config[key])] for key in _OBJECTIVE if config.get(key) is not None]
    whole = json.dumps(dict(config), indent=2, sort_keys=True, default=str)
    folded = ["<details><summary>The whole configuration</summary>", "", "```json", whole, "```", "", "</details>", ""]
    return ["## Objective", "", *(_grid(["setting", "value"], rows) if rows else []), "", *(folded if config else [])]


def _metrics(snapshot: Snapshot) -> list[str]:
    rows = [[key, f"{value:.6g}"] for key, value in _numbers(snapshot.metrics)]
    said = _grid(["metric", "value"], rows) if rows else ["Nothing was measured when it was trained."]
    return ["## Metrics", "", *said, ""]


def _drift(snapshot: Snapshot, given: Mapping[str, TableDrift] | None) -> list[str]:
    tables = {name: table.to_dict() for name, table in given.items()} if given is not None else snapshot.metrics.get("drift")
    if not tables:
        return []
    rows = [
        [name, *(str(table[key]) for key in ("num_matched", "num_new", "num_gone")), _brief(table["cosine"].get("p50"))]
        for name, table in tables.items()
    ]
    told = _grid(["node type", "rows in both", "new", "gone", "median cosine with the row of before"], rows)
    return ["## Drift from the snapshot before", "", *told, ""]


def _limits(snapshot: Snapshot) -> list[str]:
    untrained = {name: snapshot.num_untrained(name) for name in snapshot.node_types if snapshot.num_untrained(name)}
    limits = ["Ids that are not in a table have no vector: they need a fallback where the tables are used."]
    until = snapshot.window.get("as_of")
    limits.append(
        f"It knows of no event from {until} on."
        if until
        else "The time until which it knows of events is not told in its lineage."
    )
    limits += [
        f"{count:,} rows of {name} were never reached by a gradient: their vectors tell nothing."
        for name, count in untrained.items()
    ]
    if not any(True for _ in _numbers(snapshot.metrics)):
        limits.append("It was not evaluated when it was trained.")
    if snapshot.manifest["tables"] and any(entry["precision"] == "fp16" for entry in snapshot.manifest["tables"].values()):
        limits.append("Vectors are stored in float16.")
    limits.append(
        "Scores compare within one query and one facet; vectors of two trainings do not compare unless they were aligned."
    )
    limits.append("Tables repeat what the logs hold, popularity and its biases among it.")
    return ["## Known limits", "", *(f"- {limit}" for limit in limits), ""]


def _use(snapshot: Snapshot) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "from multifacet.tables import Snapshot",
        "",
        'snapshot = Snapshot.load("FOLDER")  # checks every file against the manifest',
        f'embedding, id_map = snapshot.to_embedding("{snapshot.node_types[0]}")',
        "```",
    ]


def _results(snapshot: Snapshot, name: str) -> list[dict[str, Any]]:
    metrics = [{"type": key, "value": value} for key, value in _numbers(snapshot.metrics)]
    if not metrics:
        return []
    task = {"type": "graph-ml", "name": f"{snapshot.facet} pretraining"}
    dataset = {"type": "graph-window", "name": (snapshot.parents[0][:12] if snapshot.parents else "not told")}
    return [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows))]


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple) and len(value) > _MAX_LISTED:
        return f"{', '.join(map(str, value[:_MAX_LISTED]))} and {len(value) - _MAX_LISTED} more"
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else str(value)


def _plain(text: str) -> str:
    """Text that breaks no table: names of types and relations may hold anything."""
    return text.replace("|", "\\|").replace("\n", " ")
