"""`multifacet snapshot`: look at embedding snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, show_bytes, stdout

_SimilarityName = Literal["cosine", "dot", "squared", "l2", "l1", "moduli"]

app = typer.Typer(no_args_is_help=True, help="Show, verify and compare embedding snapshots.")

Path_ = Annotated[Path, typer.Argument(metavar="SNAPSHOT", help="Folder of a snapshot.")]


@app.command()
def show(path: Path_, as_json: AsJson = False) -> None:
    """Prints what a snapshot holds and where it came from."""
    from multifacet.tables import Snapshot

    snapshot = Snapshot.load(path, verify=False)
    if as_json:
        emit_json({"fingerprint": snapshot.fingerprint, **snapshot.manifest})
        return
    stdout.print(snapshot)
    emit_rows({"node type": name, "rows": snapshot.num_rows(name), "dim": snapshot.dim(name)} for name in snapshot.node_types)
    for title in ("window", "parents", "metrics", "config"):
        stdout.print(title, style="bold")
        stdout.print_json(data=snapshot.manifest[title])


@app.command()
def verify(path: Path_, as_json: AsJson = False) -> None:
    """Reads every file of a snapshot and compares its checksum; fails by the file's name."""
    from multifacet.tables import Snapshot

    snapshot = Snapshot.load(path, verify=True)
    num_bytes = sum(entry["bytes"] for entry in snapshot.manifest["files"].values())
    if as_json:
        emit_json({"fingerprint": snapshot.fingerprint, "files": len(snapshot.manifest["files"]), "bytes": num_bytes})
    else:
        stdout.print(
            f"{path}: {len(snapshot.manifest['files'])} files, {show_bytes(num_bytes)}, whole and unchanged", soft_wrap=True
        )


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of the earlier snapshot.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the later snapshot.")],
    align: Annotated[
        bool, typer.Option(help="Also compare after the rotation that brings the old tables closest to the new ones.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Tells how far each table has moved: rows by external id, cosines, lengths, and whether neighbours stayed."""
    from multifacet.tables import Snapshot, compare_snapshots

    snapshots = Snapshot.load(old, verify=False), Snapshot.load(new, verify=False)
    drift = {name: table.to_dict() for name, table in compare_snapshots(*snapshots, align=align).items()}
    if as_json:
        fingerprints = [snapshot.fingerprint for snapshot in snapshots]
        emit_json({"old": fingerprints[0], "new": fingerprints[1], "tables": drift})
    else:
        emit_drift(drift)


def emit_drift(drift: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a drift report: medians and the worst twentieth; the rest is in the JSON."""
    rows = []
    for name, table in drift.items():
        cosine, aligned = table["cosine"], table["aligned_cosine"] or {}
        figures = {
            "cos p5": cosine.get("p5"),
            "cos p50": cosine.get("p50"),
            "aligned p50": aligned.get("p50"),
            "length": table["norm_ratio"].get("p50"),
            "same 10": table["neighbor_overlap"],
        }
        counts = {"same": table["num_matched"], "new": table["num_new"], "gone": table["num_gone"]}
        rounded = {key: None if value is None else round(value, 3) for key, value in figures.items()}
        rows.append({"type": name, **counts, **rounded})
    emit_rows(rows)
    stdout.print(
        "cos: cosine of a row with its old self (p5: of the worst twentieth); aligned: after the best common rotation; "
        "length: new over old, median; same 10: share of the 10 nearest that stayed",
        style="dim",
    )


@app.command()
def align(
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the snapshot to write anew.")],
    to: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of the older snapshot, whose basis is taken.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Snapshot to write: a folder that does not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Writes a snapshot anew in the basis of an older one: every score of its own stays, and old rankers can read it."""
    from multifacet.pipeline import alignment
    from multifacet.tables import Snapshot

    aligned = alignment.align(output, Snapshot.load(new), Snapshot.load(to))
    told = aligned.metrics["alignment"]
    if as_json:
        emit_json({"snapshot": str(output), "fingerprint": aligned.fingerprint, "alignment": told})
        return
    rows = ({"node type": name, **table} for name, table in told["tables"].items())
    emit_rows(rows, title=f"squared distance from the old rows, as a share of theirs ({told['symmetry']})")


@app.command()
def card(
    path: Path_,
    license: Annotated[str, typer.Option(help="License, such as apache-2.0.")] = "other",  # noqa: A002
    name: Annotated[str | None, typer.Option(help="Title; the folder's name by default.")] = None,
    against: Annotated[Path | None, typer.Option(help="Older snapshot to tell the drift from.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write, such as README.md; printed by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Writes a model card from the lineage: data, objective, metrics, drift, known limits."""
    from multifacet.artifacts import write_file
    from multifacet.pipeline.sharing.card import make_card
    from multifacet.tables import Snapshot, compare_snapshots

    snapshot = Snapshot.load(path, verify=False)
    drift = None if against is None else compare_snapshots(Snapshot.load(against, verify=False), snapshot, align=False)
    text = make_card(snapshot, name=name or path.resolve().name, license=license, drift=drift)
    if output is not None:
        write_file(output, text, durable=False)
    if as_json:
        emit_json({"fingerprint": snapshot.fingerprint, "card": text, "output": None if output is None else str(output)})
    elif output is None:
        typer.echo(text, nl=False)


@app.command()
def index(
    path: Path_,
    node_type: Annotated[str, typer.Argument(metavar="TYPE", help="Node type whose rows are to be found.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Index to write: a folder that does not exist yet.")],
    backend: Annotated[Literal["faiss", "usearch"], typer.Option(help="What searches (the extra `index`).")] = "faiss",
    structure: Annotated[
        Literal["auto", "ivf", "hnsw"],
        typer.Option(help="Lists of 4-bit codes, or a graph of whole vectors; lists from 50,000 rows on."),
    ] = "auto",
    similarity: Annotated[_SimilarityName | None, typer.Option(help="What to compare by; the facet's own by default.")] = None,
    relation: Annotated[
        str | None, typer.Option(help="Of a model that projects entities (TransR): the relation whose answers are searched.")
    ] = None,
    side: Annotated[Literal["tail", "head"], typer.Option(help="With --relation: which end the rows are.")] = "tail",
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that recall is measured of.")] = 10,
    recall: Annotated[float, typer.Option(help="Recall to reach on the sampled queries.")] = 0.95,
    num_queries: Annotated[int, typer.Option("--queries", min=2, help="Queries sampled to choose by and to measure.")] = 1000,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an index that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Builds an approximate index of a table by its facet's own score, and tells its recall and speed beside exact search.

    multifacet snapshot index runs/contrastive pin runs/pins-index

    multifacet snapshot predict runs/contrastive "user 7" --index runs/pins-index
    """
    from multifacet.pipeline.indexing import build_index
    from multifacet.tables import IndexConfig, Snapshot

    config = IndexConfig(backend=backend, structure=structure, k=k, recall=recall, num_queries=num_queries)
    snapshot = Snapshot.load(path, verify=False)
    built, measured = build_index(
        output, snapshot, node_type, config, similarity=similarity, relation=relation, side=side, replace=replace
    )
    if as_json:
        emit_json({"index": str(output), "fingerprint": built.fingerprint, **built.manifest, "measured": measured.to_dict()})
        return
    stdout.print(built)
    emit_rows(
        [
            {"search": "index", f"recall@{measured.k}": measured.recall, "queries per s": measured.queries_per_s},
            {"search": "exact", f"recall@{measured.k}": 1.0, "queries per s": measured.exact_queries_per_s},
        ],
        title=f"{measured.num_queries} queries, by {built.similarity}",
    )


@app.command()
def neighbors(
    path: Path_,
    node_type: Annotated[str, typer.Argument(metavar="TYPE", help="Node type of the id.")],
    id: Annotated[str, typer.Argument(help="External id.")],  # noqa: A002 - the argument's name
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to list.")] = 10,
    among: Annotated[
        str | None, typer.Option(help="Node type to search, e.g. the pins for a user; the id's own by default.")
    ] = None,
    similarity: Annotated[
        _SimilarityName | None, typer.Option(help="What to compare by: cosine by default, with --index what it was built for.")
    ] = None,
    backend: Annotated[Literal["torch", "faiss"], typer.Option(help="What searches; both are exact.")] = "torch",
    index: Annotated[Path | None, typer.Option(help="Index of the searched type to ask instead (`snapshot index`).")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the nearest rows of an id, by comparing it with every row, or by an index."""
    from multifacet.pipeline.indexing import find_predictions
    from multifacet.tables import IdMap, Snapshot, VectorIndex, find_neighbors

    snapshot = Snapshot.load(path, verify=False)
    for name in (node_type, among or node_type):
        if name not in snapshot.node_types:
            msg = f"{path} has no table {name!r}; it has {', '.join(snapshot.node_types)}"
            raise ValueError(msg)
    ids = snapshot.ids(node_type)
    rows = IdMap.exact(ids)
    key = [int(id)] if rows.id_type == "int64" else [id]
    row = int(rows.rows(key)[0])
    if row == rows.oov_row:
        msg = f"{path} has no {node_type} with the id {id}"
        raise ValueError(msg)
    searched = among or node_type
    own = searched == node_type
    query = snapshot.vectors(node_type)[row : row + 1]
    if index is not None:
        opened = VectorIndex.load(index, snapshot=snapshot, verify=False)
        if similarity not in {None, opened.similarity}:
            msg = f"{index} was built to compare by {opened.similarity}, not by {similarity}: leave --similarity out"
            raise typer.BadParameter(msg)
        similarity = opened.similarity
        listed = find_predictions(opened, query.float(), k + own, node_type=searched)
        result = [{"id": each["id"], similarity: each["score"]} for each in listed if not (own and each["id"] == key[0])][:k]
    else:
        similarity = similarity or "cosine"
        scores, found = find_neighbors(query, snapshot.vectors(searched), k + own, similarity=similarity, backend=backend)
        pairs = [(int(place), float(score)) for place, score in zip(found[0], scores[0], strict=True)]
        searched_ids = snapshot.ids(searched)
        result = [
            {"id": searched_ids[place].as_py(), similarity: score} for place, score in pairs if not (own and place == row)
        ][:k]
    if as_json:
        emit_json({"type": node_type, "id": key[0], "among": searched, "neighbors": result})
    else:
        emit_rows([{**row, "id": str(row["id"])} for row in result], columns=["id", similarity])


@app.command()
def predict(
    path: Path_,
    id: Annotated[str, typer.Argument(help="External id that is asked about.")],  # noqa: A002 - the argument's name
    relation: Annotated[
        str | None, typer.Option(help="Relation whose other end is predicted, of a snapshot of relations (facet kge).")
    ] = None,
    side: Annotated[Literal["tail", "head"], typer.Option(help="With --relation: which end is predicted.")] = "tail",
    query: Annotated[str | None, typer.Option(help="Node type that asks, of a contrastive snapshot.")] = None,
    item: Annotated[str | None, typer.Option(help="Node type that answers, of a contrastive snapshot.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Predictions to list.")] = 10,
    index: Annotated[Path | None, typer.Option(help="Index of what is predicted to ask (`snapshot index`).")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the likeliest answers to an id: tails or heads of a relation, or items of a query.

    multifacet snapshot predict runs/kge "user 7" --relation buys

    multifacet snapshot predict runs/contrastive "user 7"
    """
    from multifacet import contrastive, kge
    from multifacet.pipeline.indexing import predict_items, predict_links
    from multifacet.tables import Snapshot

    snapshot = Snapshot.load(path, verify=False)
    try:
        if snapshot.facet == "kge":
            predictor = kge.LinkPredictor.from_snapshot(snapshot)
            if relation is None:
                msg = f"{path} predicts by relation: give --relation, one of {', '.join(predictor.ends)}"
                raise typer.BadParameter(msg)
            if index is not None:
                found: list[Any] = predict_links(index, snapshot, predictor, id, relation, side, k)
            else:
                found = list((predictor.top_tails if side == "tail" else predictor.top_heads)(id, relation, k=k))
        else:
            if relation is not None:
                msg = f"{path} is of facet {snapshot.facet!r}, which has no relations: leave --relation out"
                raise typer.BadParameter(msg)
            towers = contrastive.ItemPredictor.from_snapshot(snapshot, query_type=query, item_type=item)
            found = (
                predict_items(index, snapshot, towers, id, item, k) if index is not None else list(towers.top_items(id, k=k))
            )
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    rows = [{"id": prediction.id, "score": prediction.score} for prediction in found]
    if as_json:
        emit_json({"id": id, "relation": relation, "predictions": rows})
    else:
        emit_rows([{**row, "id": str(row["id"])} for row in rows], columns=["id", "score"])
