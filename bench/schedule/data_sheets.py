"""Names GPUs for which a run can be planned from a machine without one, by their data sheets.

A card's peak is what its maker prints for dense products. How much of it a run reaches is assumed, and not measured:
SHARE of the arithmetic and STREAM of the bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bench.system.rates import Rates

SHARE, STREAM = 0.35, 0.7
GB, TERA = 10**9, 10**12


class DataSheet(NamedTuple):
    """Holds figures of a GPU's data sheet.

    title      its name
    memory     GB
    half       TFLOP/s in bfloat16 and float16 on tensor cores, without sparsity
    single     TFLOP/s in float32
    double     TFLOP/s in float64, on tensor cores where it has such
    bandwidth  GB/s of its memory
    """

    title: str
    memory: float
    half: float
    single: float
    double: float
    bandwidth: float

    def rates(self, dtype: torch.dtype) -> Rates:
        """Return what the card is assumed to reach in a dtype; two operations are one multiply-accumulate."""
        peak = self.single if dtype == torch.float32 else self.half
        macs, exact = (SHARE * TERA * operations / 2 for operations in (peak, self.double))
        return Rates(macs, exact, STREAM * GB * self.bandwidth)


DATA_SHEETS = {
    "h100": DataSheet("H100 SXM", 80, 989, 67, 67, 3350),
    "h200": DataSheet("H200 SXM", 141, 989, 67, 67, 4800),
    "a100": DataSheet("A100 80GB SXM", 80, 312, 19.5, 19.5, 2039),
    "l40s": DataSheet("L40S", 48, 362, 91.6, 1.4, 864),
}
