"""Memory that a process frees is its own when it allocates again."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from multifacet.kernels.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(30):
    if step == 20:  # by then the heap has room between what else lives in it
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what it sets")
def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    def count_faults(mode: str) -> int:
        ran = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
        return int(ran.stdout)

    assert count_faults("keep") < 0.1 * count_faults("default")


# Large blocks with small ones between them that stay, as messages of many clients leave them.
HELD = """
import sys
from multifacet.kernels.memory import give_freed_memory_back
if sys.argv[1] == "give":
    assert give_freed_memory_back()
own = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:"))
bytearray(4_000_000)  # by its end glibc takes blocks as large from the heap
before, blocks, kept = own(), [], []
for _ in range(50):
    blocks.append(bytearray(b"x") * 3_000_000)
    kept.append(bytearray(b"x") * 100_000)
blocks.clear()
print(own() - before)
"""


def test_a_server_gives_back_what_large_messages_took() -> None:
    def kept_kib(mode: str) -> int:
        ran = subprocess.run([sys.executable, "-c", HELD, mode], capture_output=True, text=True, check=True)
        return int(ran.stdout)

    assert kept_kib("default") > 100_000
    assert kept_kib("give") < 10_000
