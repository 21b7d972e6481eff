"""The network of a world: messages are late, lost, sent twice, overtaken, or kept from one side by a partition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.harness.worlds.engine import Engine
from multifacet.serving.errors import DeadlineExceededError, ServingError, UnavailableError

Answer = Callable[[Any], None]
_REFUSED_S = 0.002


class Host(Protocol):
    """A machine with one process."""

    name: str
    is_up: bool
    epoch: int

    def receive(self, kind: str, message: Any, answer: Answer) -> None:
        """Take a message; `answer` sends what comes of it, a value or a `ServingError`."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network and the machines do to a world.

    Attributes:
        delay_s: Mean time of a message.
        loss: Share of the messages that are lost.
        twice: Share of the requests that arrive twice.
        astray: Share of the answers that reach another request of the same two ends.
    """

    delay_s: float = 0.002
    loss: float = 0.0
    twice: float = 0.0
    astray: float = 0.0


class Call:
    """A request that waits for its answer."""

    __slots__ = ("_network", "_on_answer", "epoch", "is_open", "pair", "source")

    def __init__(self, network: Network, source: Host, pair: tuple[str, str, str], on_answer: Answer):
        self._network = network
        self._on_answer = on_answer
        self.source = source
        self.pair = pair
        self.epoch = source.epoch
        self.is_open = True

    def end(self, answer: Any) -> None:
        """Take the first answer that comes, or the end of the wait; nothing if it is over, or who asked is gone."""
        if not self.is_open:
            return
        self.is_open = False
        self._network.open_calls[self.pair].remove(self)
        if self.source.is_up and self.source.epoch == self.epoch:
            self._on_answer(answer)


class Network:
    """Carries messages between hosts.

    Args:
        engine: The world's time and chance.
        weather: What it does to messages.
    """

    def __init__(self, engine: Engine, weather: Weather):
        self.engine = engine
        self.weather = weather
        self.hosts: dict[str, Host] = {}
        self.cut: set[tuple[str, str]] = set()
        self.open_calls: dict[tuple[str, str, str], list[Call]] = {}

    def send(self, source: str, target: str, work: Callable[..., None], *arguments: Any) -> None:
        """Carry a message, or lose it."""
        engine, weather = self.engine, self.weather
        if (source, target) in self.cut or (weather.loss and engine.random.random() < weather.loss):
            engine.say(source, "a message to {} is lost", target)
            return
        engine.after(engine.random.expovariate(1 / weather.delay_s), work, *arguments)

    def call(self, source: Host, target: str, kind: str, message: Any, on_answer: Answer, timeout_s: float) -> Call:
        """Ask a host.

        Args:
            source: Who asks.
            target: Whom.
            kind: What the message is.
            message: The message.
            on_answer: Gets the answer, a `ServingError` among them.
            timeout_s: When to give it up.
        """
        pair = (source.name, target, kind)
        call = Call(self, source, pair, on_answer)
        self.open_calls.setdefault(pair, []).append(call)
        times = 2 if self.weather.twice and self.engine.random.random() < self.weather.twice else 1
        for _ in range(times):
            self.send(source.name, target, self._arrive, call, target, kind, message)
        self.engine.after(timeout_s, call.end, DeadlineExceededError(f"{target} did not answer within {timeout_s:g} s"))
        return call

    def _arrive(self, call: Call, target: str, kind: str, message: Any) -> None:
        host = self.hosts[target]
        if not host.is_up:
            error: ServingError = UnavailableError(f"{target} refuses the connection")
            self.send(target, call.pair[0], call.end, error)
            return
        host.receive(kind, message, lambda answer: self.send(target, call.pair[0], self._deliver, call, answer))

    def _deliver(self, call: Call, answer: Any) -> None:
        others = self.open_calls[call.pair]
        astray = self.weather.astray
        if astray and call.pair[2] == "lookup" and others and self.engine.random.random() < astray:
            others[self.engine.random.randrange(len(others))].end(answer)  # a proxy, or a connection that was used again
            return
        call.end(answer)
