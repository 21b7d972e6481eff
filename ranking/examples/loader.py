"""Batches of examples as KeyedJaggedTensors, for a training loop of one's own: shuffled, prefetched, restartable."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec import KeyedJaggedTensor

from multifacet.inputs import expect_attributes, mapping_to, takes, whole
from multifacet.ranking.slots import RECENT_PINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multifacet.ranking.examples.examples import Examples
    from multifacet.ranking.examples.recent import IdLists
    from multifacet.tables import IdMap

_ENDED: Final = object()


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one training step reads.

    Attributes:
        dense: Raw dense features, float32 [B, F].
        sparse: Rows of the id features' tables: one key a feature; of "recent_pins" as many as there are.
        ctr: Labels, float32 [B].
        cvr: Labels, float32 [B], 0 where unknown.
        cvr_known: float32 [B], 1 where the CVR label is known, else 0.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    ctr: Tensor
    cvr: Tensor
    cvr_known: Tensor


class ExampleLoader:
    """Epochs of shuffled batches, made by a thread beside the training loop.

    Ids are looked up once for all examples, by column; a batch is then a few gathers, and its jagged values are cut out by
    a mask: nothing is done by example. Each `iter` is an epoch (or the rest of one), whose order depends on the seed and
    the epoch's number only. `state_dict` counts the batches that were handed out, so that it is right between two steps
    whatever the thread has made ahead.

    Args:
        examples: The examples; with recent pins, there is a key "recent_pins", whose rows are of the map "pin".
        id_maps: Feature of the examples, such as "user" -> its id map; of a feature of several ids each example has as many
            rows as it has ids.
        batch_size: Examples a batch.
        seed: Seed of the orders.
        rank: Which rank this is: of each batch it reads every `num_ranks`-th example.
        num_ranks: Ranks that read one batch together.
        prefetch: Batches made ahead.

    Example:
        >>> loader = ExampleLoader(examples, id_maps, batch_size=2048)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     loss(model(batch.dense, batch.sparse), batch.ctr).backward()
    """

    @takes(
        id_maps=mapping_to("IdMap", "num_rows", "rows_of", "id_type"),
        batch_size=whole(),
        seed=whole(0),
        rank=whole(),
        num_ranks=whole(),
        prefetch=whole(),
    )
    def __init__(
        self,
        examples: Examples,
        id_maps: Mapping[str, IdMap],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        prefetch: int = 2,
    ) -> None:
        expect_attributes("examples", examples, ("dense_names", "id_features"), "Examples")
        if batch_size < 1 or prefetch < 1 or not 0 <= rank < num_ranks or len(examples) == 0:
            raise ValueError(
                f"{len(examples)} examples, batch_size={batch_size}, prefetch={prefetch}, rank {rank} of {num_ranks}: "
                "expected at least one of each, and a rank below num_ranks"
            )
        self.batch_size, self.seed, self.rank, self.num_ranks, self.prefetch = batch_size, seed, rank, num_ranks, prefetch
        self._rows: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        for name, id_map in id_maps.items():
            if name in examples.lists:
                self._add_lists(name, examples, name, examples.lists[name], id_map)
            else:
                self._rows[name] = torch.from_numpy(examples.rows(name, id_map))
        if examples.recent is not None:
            if "pin" not in id_maps:
                raise ValueError("the examples have recent pins, which are looked up by the id map of 'pin': give it")
            self._add_lists(RECENT_PINS, examples, "pin", examples.recent, id_maps["pin"])
        known = np.isfinite(examples.cvr_label)
        self._columns = {
            "dense": torch.from_numpy(examples.dense),
            "ctr": torch.from_numpy(examples.ctr_label),
            "cvr": torch.from_numpy(np.where(known, examples.cvr_label, np.float32(0))),
            "cvr_known": torch.from_numpy(known.astype(np.float32)),
        }
        self._epoch = self._step = 0

    def _add_lists(self, name: str, examples: Examples, feature: str, lists: IdLists, id_map: IdMap) -> None:
        there = np.arange(lists.length) < lists.num_recent[:, None]
        rows = np.zeros((len(lists), lists.length, id_map.num_hashes), np.int32)
        rows[there] = examples.rows(feature, id_map, lists.listed())
        self._rows[name] = torch.from_numpy(rows).view(len(lists), -1)
        self._counts[name] = torch.from_numpy(lists.num_recent) * id_map.num_hashes

    def __len__(self) -> int:
        """Batches an epoch."""
        return (len(self._columns["ctr"]) + self.batch_size - 1) // self.batch_size

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self._columns['ctr'])} examples, {list(self._rows)}, batch_size={self.batch_size}, "
            f"epoch={self._epoch}, step={self._step})"
        )

    def state_dict(self) -> dict[str, int]:
        """Tell where it stands: JSON-able."""
        return {"seed": self.seed, "batch_size": self.batch_size, "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state_dict` was called.

        Raises:
            ValueError: If the state is of another seed or batch size: the batches would be others.
        """
        if (state["seed"], state["batch_size"]) != (self.seed, self.batch_size):
            raise ValueError(f"the state is {dict(state)}; this loader has seed={self.seed}, batch_size={self.batch_size}")
        self._epoch, self._step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        """Give the rest of the epoch, and begin the next."""
        ready: queue.Queue[Any] = queue.Queue(self.prefetch)
        stopped = threading.Event()
        thread = threading.Thread(target=self._make, args=(ready, stopped, self._epoch, self._step), daemon=True)
        thread.start()
        try:
            while (batch := ready.get()) is not _ENDED:
                if isinstance(batch, BaseException):
                    raise batch
                self._step += 1
                yield batch
            self._epoch, self._step = self._epoch + 1, 0
        finally:
            stopped.set()
            thread.join()

    def _make(self, ready: queue.Queue[Any], stopped: threading.Event, epoch: int, first: int) -> None:
        def hand_over(item: object) -> bool:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.05)
                except queue.Full:
                    continue
                return True
            return False

        try:
            # A Philox key of seed and epoch: another epoch, another stream.
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            order = torch.from_numpy(generator.permutation(len(self._columns["ctr"])))
            for step in range(first, len(self)):
                chosen = order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.num_ranks]
                if not hand_over(self._batch(chosen)):
                    return
            hand_over(_ENDED)
        except BaseException as error:  # noqa: BLE001 - raised again where the batches are read
            hand_over(error)

    def _batch(self, chosen: Tensor) -> Batch:
        values, lengths = [], []
        for name, rows in self._rows.items():
            taken = rows[chosen]
            if name in self._counts:
                counts = self._counts[name][chosen]
                values.append(taken[torch.arange(taken.shape[1]) < counts[:, None]])
                lengths.append(counts)
            else:
                values.append(taken.reshape(-1))
                lengths.append(torch.full((len(chosen),), taken.shape[1], dtype=torch.int32))
        sparse = KeyedJaggedTensor(keys=list(self._rows), values=torch.cat(values), lengths=torch.cat(lengths))
        return Batch(sparse=sparse, **{name: column[chosen] for name, column in self._columns.items()})
