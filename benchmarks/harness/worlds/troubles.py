"""What goes wrong in a world: kills, power cuts, partitions, full and lost disks, clocks that jump."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness.worlds.server import Server
    from benchmarks.harness.worlds.world import World


class Troubles:
    """Lets one thing after the other go wrong, until the world heals.

    Args:
        world: Whose things.
    """

    def __init__(self, world: World):
        self.world = world

    def begin(self) -> None:
        """Let something go wrong."""
        chance = self.world.engine.random
        if self.world.is_healing:
            return
        self.world.num_faults += 1
        name = chance.choice(sorted(self.world.servers))
        server = self.world.servers[name]
        match chance.choice(("kill", "kill", "power", "power", "cut", "cut", "full", "jump", "operator", "store", "disk")):
            case "kill":
                self._kill(server, power=False)
            case "power":
                self._kill(server, power=True)
            case "disk" if chance.random() < 0.3:
                self.world.disks_were_lost = True
                self._kill(server, power=False)
                server.lose_disk()
            case "cut":
                self._cut(name)
            case "full":
                self.world.engine.say(name, "its disk is full")
                server.disk.is_full = True
                self.world.engine.after(chance.uniform(0.5, 3.0), self._make_room, server)
            case "jump":
                machine = chance.choice((server, self.world.operator))
                machine.clock_offset_s += chance.expovariate(0.2)
                self.world.engine.say(machine.name, "its clock jumps to {}", machine.clock())
            case "operator":
                self.world.operator.kill(power=chance.random() < 0.5)
            case "store":
                self.world.store.kill(power=chance.random() < 0.5)
        self.world.engine.after(chance.expovariate(0.8), self.begin)

    def _kill(self, server: Server, *, power: bool) -> None:
        if server.is_up:
            server.kill(power=power)
            self.world.engine.after(self.world.engine.random.uniform(0.05, 3.0), boot, server)

    def _make_room(self, server: Server) -> None:
        server.disk.is_full = False

    def _cut(self, name: str) -> None:
        chance = self.world.engine.random
        everybody = [other for other in (*self.world.servers, "ops") if other != name]
        others = everybody if chance.random() < 0.5 else [chance.choice(everybody)]
        pairs = {(name, other) for other in others}
        if chance.random() < 0.7:
            pairs |= {(other, name) for other in others}
        self.world.engine.say(name, "is cut off: {}", sorted(pairs))
        self.world.network.cut |= pairs
        self.world.engine.after(chance.uniform(0.2, 6.0), self._mend, pairs)

    def _mend(self, pairs: set[tuple[str, str]]) -> None:
        self.world.network.cut -= pairs


def boot(server: Server) -> None:
    """Start a server that is down."""
    if not server.is_up:
        server.boot()
