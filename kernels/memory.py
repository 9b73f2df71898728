"""The C allocator's habits, set for programs that allocate the same large blocks at every step."""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt
_NEVER_TRIM = 2**31 - 1
_TOP_PAD_BYTES = 2**28


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for reuse instead of returning them to the kernel; say whether it could.

    By default every block over 32 MiB is mapped anew and zeroed page by page at its first touch, which took a sixth of
    a training step and a third of a beam search on a CPU. The process then holds on to its peak of memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER_TRIM, _TOP_PAD: _TOP_PAD_BYTES}
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings.items())
