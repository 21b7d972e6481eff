"""A TorchRec model of one's own: its table starts from a snapshot, learns in one's own loop, and is encoded in INT4.

    python examples/own_torchrec_model.py build/own_torchrec_model

The project enters in two calls, `init_tables` and `encode`; model, data and loop are anybody's.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from multifacet.ranking import TableSource, init_tables
from multifacet.tables import Snapshot, SnapshotTable, decode, encode, relative_error

folder = Path(sys.argv[1])
generator = torch.Generator().manual_seed(0)

# What a pretraining wrote: a vector for each of 500 pins. Pins of one interest lie close to each other.
pin_ids = torch.arange(7000, 7500)
interest = torch.randn(5, 32, generator=generator)
vectors = interest[pin_ids % 5] + 0.3 * torch.randn(500, 32, generator=generator)
pins = SnapshotTable(ids=pin_ids.tolist(), vectors=vectors)
snapshot = Snapshot.write(folder / "snapshot", facet="kge", tables={"pin": pins})


class Ranker(torch.nn.Module):
    """Somebody's ranker: one table, read as a bag of a user's pins, and a linear layer."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        table = EmbeddingBagConfig(name="t_pin", embedding_dim=32, num_embeddings=num_rows, feature_names=["pin"])
        self.sparse = EmbeddingBagCollection(tables=[table])
        self.top = torch.nn.Linear(32, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Give a logit a user."""
        logits: Tensor = self.top(self.sparse(features)["pin"]).squeeze(1)
        return logits


# Somebody's vocabulary: another order, and 100 pins that no snapshot has.
row_of = {pin: row for row, pin in enumerate(reversed(range(7000, 7600)))}
model = Ranker(len(row_of))
source = TableSource(snapshot=snapshot, node_type="pin", rows=row_of, norm=1.0)
report = init_tables(model, {"t_pin": source})
print(report)
assert report["t_pin"].num_filled == 500
report.check(model)

# Somebody's loop: users hold three pins of one interest, and click if it is the first one.
optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
losses = []
for _ in range(30):
    interest_of = torch.randint(5, (256,), generator=generator)
    ids = 7000 + 5 * torch.randint(100, (256, 3), generator=generator) + interest_of[:, None]
    rows = torch.tensor([row_of[pin] for pin in ids.flatten().tolist()])
    features = KeyedJaggedTensor.from_lengths_sync(keys=["pin"], values=rows, lengths=torch.full((256,), 3))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(features), (interest_of == 0).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses

# What a lookup host would hold: 20 bytes a row instead of 128.
table = model.sparse.embedding_bags["t_pin"].weight.detach()
encoded = encode(table, "int4", "refit")
error = relative_error(table, decode(encoded, 32, "int4"))
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; {encoded.shape[1]} bytes a row, relative squared error {error:.4f}")
assert error < 0.01
