"""Where `train` and `evaluate` read their examples: labelled rows of one's own, or the exposures of a store's periods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import typer

from multifacet.pipeline.options import parse_settings
from multifacet.pipeline.terminal.console import stderr

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

    from multifacet import ranking
    from multifacet.graphdb import Splits

__all__ = ["LabelledRows", "StorePeriods", "read_query", "split_paths"]


def split_paths(paths: list[Path], examples: Path | None, last: str) -> tuple[Path | None, Path]:
    """Tells a command's store from the path that follows it."""
    if len(paths) != (1 if examples is not None else 2):
        wanted = f"one path, {last}" if examples is not None else f"two paths, STORE and {last}; or --examples FILE and {last}"
        msg = f"expected {wanted}; got {' '.join(map(str, paths))}"
        raise typer.BadParameter(msg)
    return (None if examples is not None else paths[0]), paths[-1]


def read_query(store: Path, query: str) -> Any:
    """Asks a store for labelled rows."""
    from multifacet.graphdb import GraphStore  # noqa: PLC0415 - it takes time to import

    with GraphStore.open(store, read_only=True) as graph:
        return graph.sql(query)


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Labelled rows, and how they are divided.

    Attributes:
        file: Their file; None for a query.
        store: The store that is asked; None for a file.
        query: What it is asked.
        columns: Which columns are what.
        validation: Another file, of the rows to validate on.
        validate_from: Time from which on rows are validated on.
    """

    file: Path | None
    store: Path | None
    query: str | None
    columns: ranking.LabelledColumns
    validation: Path | None = None
    validate_from: dt.datetime | None = None

    @classmethod
    def of(
        cls,
        store: Path | None,
        file: Path | None,
        query: str | None,
        *,
        columns: list[str] | None,
        features: list[str] | None,
        dense: list[str] | None,
        validation: Path | None,
        validate_from: dt.datetime | None,
    ) -> Self | None:
        """Reads a command's options; None if they name no labelled rows."""
        divided = {"--validation-examples": validation, "--validate-from": validate_from}
        given = [name for name, value in divided.items() if value is not None]
        if file is not None and query is not None:
            msg = "--examples names a file, --query asks a store: give one of them"
            raise typer.BadParameter(msg)
        if file is None and query is None:
            given += [name for name, value in (("--column", columns), ("--feature", features), ("--dense", dense)) if value]
            if given:
                msg = f"{' and '.join(given)}: of labelled rows; give --examples FILE or --query SQL"
                raise typer.BadParameter(msg)
            return None
        if len(given) != 1:
            msg = "say what to validate on: --validation-examples FILE, or --validate-from TIME with --column time=COLUMN"
            raise typer.BadParameter(msg)
        chosen = _parse_columns(columns, features, dense)
        if validate_from is not None and chosen.time is None:
            msg = "--validate-from divides by time: name the column of times by --column time=COLUMN"
            raise typer.BadParameter(msg)
        return cls(file=file, store=store, query=query, columns=chosen, validation=validation, validate_from=validate_from)

    @property
    def id_features(self) -> list[str]:
        """The id features that the columns name."""
        return ["user", "pin", *(["advertiser"] if self.columns.advertiser else []), *self.columns.features]

    def read(self) -> tuple[ranking.Examples, ranking.Examples]:
        """Reads the rows to learn from, and those to validate on."""
        import numpy as np  # noqa: PLC0415 - it takes time to import

        from multifacet import ranking  # noqa: PLC0415 - likewise

        source: Any = self.file
        if source is None:
            assert self.store is not None  # noqa: S101 - of a query there is a store
            source = read_query(self.store, self.query or "")
        everything = ranking.read_examples(source, self.columns)
        if self.validation is not None:
            return everything, ranking.read_examples(self.validation, self.columns)
        is_later = ranking.read_times(source, self.columns) >= np.datetime64(self.validate_from)
        if is_later.all() or not is_later.any():
            msg = (
                f"{int(is_later.sum())} of {len(is_later)} rows are from {self.validate_from} on; choose a time with rows "
                "before and after it"
            )
            raise ValueError(msg)
        return everything.take(~is_later), everything.take(is_later)


def _parse_columns(columns: list[str] | None, features: list[str] | None, dense: list[str] | None) -> ranking.LabelledColumns:
    from multifacet import ranking  # noqa: PLC0415 - it takes time to import

    fields = parse_settings(columns)
    wrong = sorted(set(fields) - set(ranking.LabelledColumns.model_fields))
    if wrong:
        msg = f"--column names {wrong}; there are {', '.join(ranking.LabelledColumns.model_fields)}"
        raise typer.BadParameter(msg)
    if features:
        pairs = [feature.partition("=") for feature in features]
        fields["features"] = {name: column or name for name, _, column in pairs}
    if dense:
        fields["dense"] = dense
    return ranking.LabelledColumns(**fields)


@dataclass(frozen=True, kw_only=True)
class StorePeriods:
    """Exposures of a store with the plain tables periods, placements, responses, visits and purchases.

    Attributes:
        store: The store.
        weighting: How negatives are drawn.
        seed: Of the draws.
        recent_pins: Recent pins that an example has.
    """

    store: Path
    weighting: ranking.Weighting
    seed: int
    recent_pins: int = 0

    def read(
        self,
        training: tuple[int, int] | None,
        validation: tuple[int, int] | None,
        labels_known_before: int | None,
        *,
        folder: Path,
        draws: bool,
    ) -> list[ranking.Examples]:
        """Draws training's and validation's examples; of several processes, one does, for all."""
        from multifacet import ranking  # noqa: PLC0415 - it takes time to import
        from multifacet.pipeline.processes import count_processes  # noqa: PLC0415 - likewise
        from multifacet.pipeline.runs.stages import period_start  # noqa: PLC0415 - likewise

        if (training is None) != (validation is None):
            msg = "--training and --validation go together; without both, the periods that exist are divided"
            raise typer.BadParameter(msg)
        if training is None or validation is None:
            splits = self._infer()
            training, validation = splits.training, splits.validation
            labels_known_before = splits.test[0] if labels_known_before is None else labels_known_before
        drawn: list[Any] = [None, None]
        if draws:
            from multifacet.graphdb import GraphStore  # noqa: PLC0415 - likewise

            with GraphStore.open(self.store, read_only=True) as graph, stderr.status("drawing examples"):
                known = period_start(graph, labels_known_before) if labels_known_before is not None else None
                spans = ((training, known), (validation, None))
                drawn = [self._draw(graph, span, self.seed + number, before) for number, (span, before) in enumerate(spans)]
        return [ranking.share_examples(part, folder) for part in drawn] if count_processes() > 1 else drawn

    def read_one(self, periods: tuple[int, int] | None) -> ranking.Examples:
        """Draws the examples of some periods, by default the test's."""
        from multifacet.graphdb import GraphStore  # noqa: PLC0415 - it takes time to import

        periods = periods or self._infer().test
        with GraphStore.open(self.store, read_only=True) as graph, stderr.status("drawing examples"):
            return self._draw(graph, periods, self.seed, None)

    def _infer(self) -> Splits:
        from multifacet.pipeline.periods import infer_splits, read_periods  # noqa: PLC0415 - it takes time to import

        splits = infer_splits(read_periods(self.store))
        told = ", ".join(f"{name} {first}..{last}" for name, (first, last) in splits)
        stderr.print(f"periods of {self.store}: {told}", highlight=False, soft_wrap=True)
        return splits

    def _draw(self, graph: Any, span: tuple[int, int], seed: int, known: Any) -> ranking.Examples:
        from multifacet import ranking  # noqa: PLC0415 - it takes time to import

        return ranking.build_examples(
            graph,
            range(span[0], span[1] + 1),
            weighting=self.weighting,
            seed=seed,
            labels_known_before=known,
            features=ranking.FeatureConfig(recent_pins=self.recent_pins),
        )
