"""How fast training goes, against the machine's own matrix-multiply rate."""

import time

import torch


def measure_matmul_gflops(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1024, seconds: float = 0.5
) -> float:
    """Best rate (10^9 operations a second) of a square product of `dtype` within about `seconds` of trying."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best_s, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        torch.matmul(left, right)
        if left.is_cuda:
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - begin)
    return 2 * size**3 / best_s / 1e9
