"""The ranker half of one release: from fetched rows and dense features to scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from multifacet.serving.core import agreement
from multifacet.serving.errors import BrokenAnswerError, InvalidRequestError, VersionNotLoadedError
from multifacet.serving.protocol import ranker_pb2
from multifacet.serving.ranker.batcher import Batcher
from multifacet.serving.ranker.device_rows import PinnedRows, decode_rows
from multifacet.serving.release.manifest import Precision, ReleaseTable
from multifacet.serving.release.pooling import Pooling
from multifacet.serving.release.release import Release
from multifacet.serving.release.upper import UpperModel, load_program
from multifacet.serving.wire.answers import LookupAnswer
from multifacet.tables.codec import decode

if TYPE_CHECKING:
    from multifacet.serving.ranker.request_ids import RequestIds


class Scorer:
    """Scores candidates with one version.

    Args:
        release: An open release.
        device: Where rows are decoded and the upper model runs; ``auto`` takes CUDA if there is one.
        batch_max_candidates: Most candidates of a batch of requests; 0 makes no batches. See `serving.ranker.batcher.Batcher`.
        batch_wait_us: How long a batch may wait for requests that are on their way.

    Attributes:
        manifest: The release's description.
        batcher: Scores requests together; None scores each by itself.

    Raises:
        ArtifactError: The upper model cannot be loaded, or does not fit the release's features and tables.
    """

    def __init__(
        self,
        release: Release,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_max_candidates: int = 0,
        batch_wait_us: int = 0,
    ):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self._pinned = PinnedRows(self.device) if self.device.type == "cuda" else None
        self.version = release.version
        self.manifest = manifest = release.manifest
        self.dense_features = manifest.dense_features
        self.dim = manifest.dim
        self._history_tables = manifest.history_tables
        self._single_tables = [table for table in manifest.slot_tables if not table.list_length]
        self._list_tables = [table for table in manifest.slot_tables if table.list_length]
        self._slot_order = self._order_slots()
        # Tables of one precision are decoded together: one operator call instead of one a table.
        self._precisions = sorted({table.precision for table in manifest.tables})
        self._upper = UpperModel(
            load_program(release.upper_path),
            num_dense=len(self.dense_features),
            num_slots=manifest.num_slots,
            dim=self.dim,
            device=device,
        )
        self._pooling: Pooling | None = None
        if manifest.sequence is not None:
            self._pooling = Pooling(
                load_program(release.pooling_path),
                length=manifest.sequence.length,
                num_facets=len(self._history_tables),
                dim=self.dim,
                device=device,
            )
            self._asking = [self._single_tables.index(table) for table in manifest.asking_tables]
        self.batcher = (
            Batcher(self, max_candidates=batch_max_candidates, wait_us=batch_wait_us) if batch_max_candidates else None
        )

    def describe(self) -> ranker_pb2.RankerVersion:
        """What a request of this version needs."""
        manifest, sequences = self.manifest, []
        if manifest.sequence is not None:
            id_type = manifest.id_types[self._history_tables[0].feature]
            sequence = manifest.sequence
            sequences = [ranker_pb2.SequenceDescription(feature=sequence.feature, id_type=id_type, length=sequence.length)]
        return ranker_pb2.RankerVersion(
            version=self.version,
            id_features=[
                ranker_pb2.FeatureDescription(
                    feature=feature, id_type=id_type, list_length=manifest.list_lengths.get(feature, 0)
                )
                for feature, id_type in manifest.id_features.items()
            ],
            dense_features=self.dense_features,
            sequences=sequences,
        )

    def read_dense(self, packed: bytes, num_candidates: int) -> torch.Tensor:
        """Dense features from their packed form.

        Args:
            packed: Little-endian float32, rows back to back.
            num_candidates: Rows.

        Returns:
            float32 [num_candidates, num_dense].

        Raises:
            InvalidRequestError: Another length, or a value that is not finite; the first one is named.
        """
        num_dense = len(self.dense_features)
        if len(packed) != 4 * num_candidates * num_dense:
            raise InvalidRequestError(
                f"dense has {len(packed)} bytes: {num_candidates} candidates of {num_dense} float32 features "
                f"({', '.join(self.dense_features)}) take {4 * num_candidates * num_dense}"
            )
        dense = np.frombuffer(packed, dtype="<f4").reshape(num_candidates, num_dense).astype(np.float32)
        if not np.isfinite(dense).all():
            candidate, column = (int(place) for place in np.argwhere(~np.isfinite(dense))[0])
            raise InvalidRequestError(
                f"dense feature {self.dense_features[column]!r} of candidate {candidate} is {dense[candidate, column]}: "
                "expected finite numbers; put a default where a value is missing"
            )
        return torch.from_numpy(dense)

    def embeddings(self, answer: LookupAnswer, ids: RequestIds) -> tuple[torch.Tensor, int]:
        """The upper model's input from fetched rows.

        Args:
            answer: What the lookup server sent.
            ids: What it was asked for, and where each id's rows go.

        Returns:
            float32 [num_candidates, num_slots, dim], and the microseconds that pooling the sequence took.

        Raises:
            VersionNotLoadedError: The rows are of another version than this scorer: a mixture is never scored.
            BrokenAnswerError: Tables or lengths are not the release's, or the rows are one shard's.
        """
        if agreement.misfit(self.version, answer.version) == "version":
            raise VersionNotLoadedError(
                f"the lookup server answered with rows of version {answer.version}, the upper model is of version "
                f"{self.version}: not scored",
                loaded=(answer.version,),
            )
        if answer.num_shards > 1:
            raise BrokenAnswerError(
                f"the lookup server holds shard {answer.shard_index} of {answer.num_shards} only: not scored. List all of its "
                "shards, with a | between their addresses"
            )
        vectors, offsets = self._decode_answer(answer, ids)
        parts = [self._means(vectors, ids, table, offsets.get(table.name, 0)) for table in self._list_tables]
        if self._single_tables:
            places = [ids.positions[table.feature] + offsets[table.name] for table in self._single_tables]
            parts.insert(0, self._choose(vectors, places))
        if self._pooling is None:
            return self._in_order(parts, ids.num_candidates), 0
        rows = parts[0]
        started_ns = time.perf_counter_ns()
        history = vectors.new_zeros(0, len(self._history_tables), self.dim)
        if len(ids.sequence):
            history = self._choose(vectors, [ids.sequence + offsets[table.name] for table in self._history_tables])
        pooled = self._pooling.pool(history, rows[:, self._asking])
        slots = self._in_order([*parts, pooled], ids.num_candidates)
        return slots, (time.perf_counter_ns() - started_ns) // 1000

    def _decode_answer(self, answer: LookupAnswer, ids: RequestIds) -> tuple[torch.Tensor, dict[str, int]]:
        """The rows of an answer [n, dim], and where each table's begin among them."""
        offsets: dict[str, int] = {}
        decoded = []
        num_decoded = 0
        for precision in self._precisions:
            blocks = []
            for table in self.manifest.tables:
                if table.precision == precision and table.feature in ids.distinct:
                    blocks.append(self._checked_rows(answer, table, len(ids.distinct[table.feature])))
                    offsets[table.name] = num_decoded
                    num_decoded += len(blocks[-1])
            if blocks:
                decoded.append(self._decode(blocks, precision))
        if not decoded:  # of a request whose lists are all empty
            return torch.zeros(0, self.dim, device=self.device), offsets
        return torch.cat(decoded) if len(decoded) > 1 else decoded[0], offsets

    def no_embeddings(self, num_candidates: int) -> torch.Tensor:
        """The upper model's input where no row is there: zeros [num_candidates, num_slots, dim]."""
        return torch.zeros(num_candidates, self.manifest.num_slots, self.dim, device=self.device)

    def score(self, dense: torch.Tensor, embeddings: torch.Tensor) -> tuple[npt.NDArray[np.float32], int]:
        """Probabilities of ctr and cvr, finite all of them.

        Args:
            dense: float32 [num_candidates, num_dense].
            embeddings: float32 [num_candidates, num_slots, dim].

        Returns:
            float32 [num_candidates, 2], and the microseconds that it took.

        Raises:
            BrokenAnswerError: The model's answer is not finite.
        """
        probabilities, upper_us = self.probabilities(dense, embeddings)
        return self.checked(probabilities), upper_us

    def probabilities(self, dense: torch.Tensor, embeddings: torch.Tensor) -> tuple[npt.NDArray[np.float32], int]:
        """As `score`, but unchecked: a batch may hold several requests, of which one may be wrong."""
        started_ns = time.perf_counter_ns()
        probabilities: npt.NDArray[np.float32] = self._upper.logits(dense, embeddings).sigmoid().numpy()
        return probabilities, (time.perf_counter_ns() - started_ns) // 1000

    def checked(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The scores of one request, if they are numbers.

        Raises:
            BrokenAnswerError: One is not; its candidate is named.
        """
        if not np.isfinite(scores).all():
            candidate = int(np.argwhere(~np.isfinite(scores))[0, 0])
            raise BrokenAnswerError(
                f"the upper model of version {self.version} scores candidate {candidate} as {scores[candidate]}: "
                "its dense features are beyond what the model can take, or its training diverged"
            )
        return scores

    def _choose(self, vectors: torch.Tensor, places: Sequence[npt.NDArray[np.intp]]) -> torch.Tensor:
        """Rows [n, len(places), dim] from where they stand among the decoded ones."""
        chosen = np.stack(places, axis=1)
        flat = torch.from_numpy(chosen.ravel()).to(self.device, non_blocking=True)
        return vectors.index_select(0, flat).view(*chosen.shape, self.dim)

    def _means(self, vectors: torch.Tensor, ids: RequestIds, table: ReleaseTable, offset: int) -> torch.Tensor:
        """The means of lists' rows [n, 1, dim], n the candidates or 1; zeros for an empty list."""
        places = torch.from_numpy(ids.positions[table.feature] + offset).to(self.device, non_blocking=True)
        ends = np.cumsum(ids.lengths[table.feature])
        offsets = torch.from_numpy(np.concatenate([[0], ends])).to(self.device, non_blocking=True)
        if not len(places):
            return vectors.new_zeros(len(ends), 1, self.dim)
        means = torch.nn.functional.embedding_bag(places, vectors, offsets, mode="mean", include_last_offset=True)
        return means[:, None]

    def _order_slots(self) -> torch.Tensor | None:
        """Where each slot of the upper model is among rows of single ids, means of lists and pooled ones; None: in order."""
        sequence = self.manifest.sequence
        pooled = sequence.slots if sequence is not None else ()
        own = [place for place in range(self.manifest.num_slots) if place not in pooled]
        slots = dict(zip(self.manifest.slot_tables, own, strict=True))
        places = [slots[table] for table in (*self._single_tables, *self._list_tables)]
        order = np.argsort([*places, *pooled])
        return None if (order == np.arange(len(order))).all() else torch.tensor(order, device=self.device)

    def _in_order(self, parts: Sequence[torch.Tensor], num_candidates: int) -> torch.Tensor:
        """Slots in the order of the upper model; a request's one list is every candidate's."""
        if len(parts) == 1 and self._slot_order is None and len(parts[0]) == num_candidates:
            return parts[0]
        slots = torch.cat([part.expand(num_candidates, -1, -1) for part in parts], dim=1)
        return slots if self._slot_order is None else slots.index_select(1, self._slot_order)

    def _decode(self, blocks: Sequence[npt.NDArray[np.uint8]], precision: Precision) -> torch.Tensor:
        """Rows of several tables, back to back; on a device the bytes go there, and become numbers there."""
        if self._pinned is not None:
            return decode_rows(self._pinned.send(blocks), precision)
        return decode(torch.from_numpy(np.concatenate(blocks)), self.dim, precision)

    def _checked_rows(self, answer: LookupAnswer, table: ReleaseTable, num_ids: int) -> npt.NDArray[np.uint8]:
        fetched = answer.tables.get(table.name)
        if fetched is None:
            raise BrokenAnswerError(f"the lookup server sent no rows of table {table.name!r}")
        given = (*fetched.rows.shape, fetched.dim, fetched.precision)
        expected = (num_ids, table.row_bytes, table.dim, table.precision)
        if given != expected:
            raise BrokenAnswerError(
                f"the lookup server sent table {table.name!r} as (rows, row_bytes, dim, precision) {given}: expected {expected}"
            )
        return fetched.rows
