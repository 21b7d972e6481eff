"""Whole deployments simulated from one seed each, on the cores that the real servers and rollouts run.

A world has a publisher, an operator, rankers and lookup servers. Its clocks, network and disks are handed in, and so are the
moments at which a process is killed, a machine loses its power, or an operator gives a command. One seed draws all of it, so a
world that failed is lived again, with a trace, by `simulate(seed, traced=True)`.

Real: every step function of `serving.core`, the table of versions and its leases, the choice among replicas with its budget,
the putting together of what lookup servers say of themselves, and the order in which files are written and synced, which is
recorded from the real writers. Simulated: threads, sockets, disks, and the contents of releases.
"""

from benchmarks.harness.worlds.world import Ending, simulate

__all__ = ["Ending", "simulate"]
