"""The allocator keeps what is freed."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from kernels.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def touch():
    np.ones(8 << 20)  # 64 MiB
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_are_reused_without_page_faults() -> None:
    faults = {mode: int(subprocess.check_output([sys.executable, "-c", PROGRAM, mode])) for mode in ("plain", "kept")}
    assert faults["kept"] * 10 < faults["plain"]
