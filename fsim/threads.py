"""How many threads compiled kernels and torch use."""

from __future__ import annotations

from fsim.errors import ConfigError


def use_threads(count: int | None) -> int:
    """Let compiled kernels and torch use `count` threads; the number in use.

    ConfigError if the kernels were started with fewer (NUMBA_NUM_THREADS).
    """
    import numba
    import torch

    if count is not None:
        most = numba.config.NUMBA_NUM_THREADS
        if count > most:
            raise ConfigError(
                f"--threads must be at most {most} here (CPUs this process may use, "
                f"or NUMBA_NUM_THREADS), got {count}"
            )
        numba.set_num_threads(count)
        torch.set_num_threads(count)
    return numba.get_num_threads()
