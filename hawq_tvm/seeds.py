"""Seeds of everything random."""

from __future__ import annotations

from numbers import Integral

from hawq_tvm.errors import HawqError


def check_seed(seed: object) -> int:
    """A seed that numpy and PyTorch both take.

    Args:
        seed: as the user gave it.

    Raises:
        HawqError: not a whole number from 0 to 2^63 - 1.
    """
    if isinstance(seed, Integral) and not isinstance(seed, bool) and 0 <= int(seed) < 2**63:
        return int(seed)
    raise HawqError(f"the seed is {seed!r}; give a whole number from 0 to 2^63 - 1")
