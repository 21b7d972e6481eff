"""All experiments that have results: a self-contained HTML page that reads like a paper's results section, and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from multifacet.pipeline.experiments.catalogue import CATALOGUE
from multifacet.pipeline.experiments.writing import section, summary_to_markdown
from multifacet.pipeline.output import show


def find_results(work_dir: Path) -> list[dict[str, Any]]:
    """The documents of finished experiments: by source, in the catalogue's order."""
    order = {name: number for number, name in enumerate(CATALOGUE)}
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in work_dir.glob("*/results-*.json")]
    return sorted(
        documents,
        key=lambda document: (order.get(document["experiment"]["name"], len(order)), document["settings"]["source"]["name"]),
    )


def write_page(work_dir: Path, output: Path | None = None) -> Path:
    """Writes the page of all results below a folder, and beside it the same as Markdown.

    Raises:
        FileNotFoundError: There are none.
    """
    documents = find_results(work_dir)
    if not documents:
        msg = f"{work_dir} holds no results; run `multifacet experiment NAME` first"
        raise FileNotFoundError(msg)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"show": show, "signed": lambda value: f"{value:+.4f}"}
    page = output or work_dir / "experiments.html"
    sections = [section(document) for document in documents]
    _write(page, environment.get_template("experiments.html.j2").render(sections=sections))
    _write(page.with_suffix(".md"), summary_to_markdown(documents))
    return page


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
