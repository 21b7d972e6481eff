"""Where the lookup servers of a fleet are: shards of a release, each on one or several hosts."""

from __future__ import annotations

from dataclasses import dataclass

from multifacet.serving.addresses import Address
from multifacet.serving.wire.answers import Shard

FRAMED = "framed:"
_FORM = "addresses of replicas with a comma between them, shards with a | between them, such as a:1,b:1|c:1,d:1"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Addresses of lookup servers.

    Attributes:
        shards: For each shard, in the order of their indices, the addresses of the servers that hold it.
    """

    shards: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Fleet:
        """Read a list of addresses.

        Args:
            text: Addresses (``host:port``, ``unix:/path``, each with ``framed:`` before it or not); ``a,b`` are two servers
                that hold the same, ``a|b`` two that hold the first and the second half of a release that was split.

        Raises:
            ValueError: An address is empty, not understood, or comes twice.

        Example:
            >>> Fleet.parse("10.0.0.1:7401,10.0.0.2:7401|10.0.0.3:7401").shards
            (('10.0.0.1:7401', '10.0.0.2:7401'), ('10.0.0.3:7401',))
        """
        shards = tuple(tuple(_read(address, text) for address in shard.split(",")) for shard in text.split("|"))
        addresses = [address for shard in shards for address in shard]
        repeated = sorted({address for address in addresses if addresses.count(address) > 1})
        if repeated:
            raise ValueError(f"lookup servers {text!r}: {', '.join(repeated)} comes more than once; expected {_FORM}")
        return cls(shards=shards)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every server's address, shard by shard."""
        return tuple(address for shard in self.shards for address in shard)

    def numbered(self) -> list[tuple[Shard, tuple[str, ...]]]:
        """Each shard's place among all, and its servers."""
        return [(Shard(index, len(self.shards)), servers) for index, servers in enumerate(self.shards)]

    def check_hedging(self, *, hedges: bool) -> None:
        """Refuse to hedge where there is nobody to hedge with.

        Raises:
            ValueError: A shard has one server only.
        """
        alone = [shard[0] for shard in self.shards if len(shard) < 2]
        if hedges and alone:
            raise ValueError(f"hedging needs a second server of the same rows, and {alone[0]} is alone: add one after a comma")

    def check_tls(self, *, wanted: bool) -> None:
        """Refuse to speak TLS where frames travel.

        Raises:
            ValueError: TLS is wanted, and a server is asked over frames.
        """
        framed = [address for address in self.addresses if address.startswith(FRAMED)]
        if wanted and framed:
            raise ValueError(f"{framed[0]}: frames travel in plain text; for TLS give the server's gRPC address")

    def __str__(self) -> str:
        return "|".join(",".join(shard) for shard in self.shards)


def _read(address: str, text: str) -> str:
    address = address.strip()
    if not address:
        raise ValueError(f"lookup servers {text!r}: an address is empty; expected {_FORM}")
    target = Address.parse(address.removeprefix(FRAMED)).text
    return f"{FRAMED}{target}" if address.startswith(FRAMED) else target
