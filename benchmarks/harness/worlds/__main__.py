"""Lives one world again and prints its trace: ``python -m benchmarks.harness.worlds SEED``."""

from __future__ import annotations

import logging
import sys

from benchmarks.harness.worlds.world import simulate

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    ending = simulate(int(sys.argv[1]), traced=True)
    print("\n".join(ending.trace))
    print(ending.violation or "nothing was violated")
    sys.exit(1 if ending.violation else 0)
