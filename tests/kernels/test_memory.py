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
