"""The states of the model: servers and what is written down, between two commands."""

from __future__ import annotations

from dataclasses import dataclass, replace

from multifacet.serving.core import rollout_events as moves
from multifacet.serving.core.document import State


class Broken(AssertionError):  # noqa: N818  (what the model found)
    """A state that must not be reached."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server between two calls.

    Attributes:
        held: The versions that it serves, sorted.
        current: Its current one.
        known: Whether somebody, or its state file, said so.
        shadow: Of a ranker: the version that shadow traffic is scored with.
    """

    held: tuple[str, ...] = ("v1",)
    current: str = "v1"
    known: bool = True
    shadow: str = ""

    def do(self, call: moves.Call) -> Server | str:
        """What a call makes of it, or why it is refused."""
        match call:
            case moves.Load(path):
                return replace(self, held=tuple(sorted({*self.held, path.name})))
            case moves.Choose(version):
                return replace(self, current=version, known=True) if version in self.held else f"{version} is not held"
            case moves.Retire(version):
                if version == self.current:
                    return f"{version} is the current one"
                held = tuple(other for other in self.held if other != version)
                return replace(self, held=held, shadow="" if self.shadow == version else self.shadow)
            case moves.SetShadow(version, _):
                return replace(self, shadow=version) if not version or version in self.held else f"{version} is not held"
            case moves.Status():
                return self


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """Everything between two commands.

    Attributes:
        document: What is written down; None before the first rollout.
        servers: The rankers, then the lookup servers.
        lost: Servers that lost their disk, or were given up, and were not given everything again yet.
    """

    document: State | None
    servers: tuple[Server, ...]
    lost: frozenset[str] = frozenset()

    # The model keeps one object of each document, so that states are compared without reading it.
    def __hash__(self) -> int:
        return hash((id(self.document), self.servers, self.lost))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Deployment)
            and self.document is other.document
            and self.servers == other.servers
            and self.lost == other.lost
        )


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found.

    Attributes:
        num_states: States between two commands.
        num_steps: Steps that controllers took.
        num_commands: Commands that were given, those that were broken off among them.
        is_whole: Whether all states were reached.
    """

    num_states: int
    num_steps: int
    num_commands: int
    is_whole: bool


def describe(deployment: Deployment) -> str:
    """Give a state in one line."""
    document = deployment.document
    told = "no rollout"
    if document is not None:
        told = f"{document.old_version} to {document.new_version}, done {document.done}, doing {document.doing}"
        told += f", left out {document.left_out}" if document.left_out else ""
    servers = ", ".join(f"{'+'.join(server.held)}:{server.current}" for server in deployment.servers)
    return f"{told}; {servers}{'; lost ' + ', '.join(deployment.lost) if deployment.lost else ''}"
