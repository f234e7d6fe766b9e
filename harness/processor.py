"""Torch on a processor as trials use it: how many threads, and who multiplies matrices.

Torch's own products of 32-bit matrices are MKL's. On processors of AMD with AVX-512, oneDNN, which every torch for x86
brings along, is some 10 % faster at the sizes of a transformer (benchmarks/README.md). So there it gets them: forward
and backward passes of every method alike, as it is torch's kernel that is replaced and not a layer. Sums run through
the inner dimension in another order, no number is rounded to fewer bits.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.library import Library

from harness.measure.environment import cpuinfo

INNER = range(128, 2049)
"""Inner dimensions that oneDNN gets. It adds straight through, so beyond them its errors would be many times MKL's (at
1,536: 3 times), and below them it is not faster."""
LEAST_ROWS, LEAST_COLUMNS = 256, 64
"""Below them it is not faster."""
_replaced: list[Library] = []
"""Torch's kernels are its own again when this goes."""


def prepare(threads: int) -> None:
    """Set up this process for a trial: threads within an operation, and the faster products where there are any."""
    torch.set_num_threads(threads)
    if not _replaced and products_pay():
        _replaced.append(faster_products())


def products_pay() -> bool:
    """Whether this machine's products are faster by oneDNN, and this torch has what it takes to say so."""
    able = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not able or not hasattr(torch.library, "get_kernel") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return cpuinfo("vendor_id") == "AuthenticAMD"


def faster_products() -> Library:
    """Give oneDNN what suits it of `mm` and `addmm` on the processor, while the answer lives.

    Torch has no setting for it: `torch.backends.mkldnn` chooses for its own layers, and for products of fewer bits.
    """
    linear = torch.ops.mkldnn._linear_pointwise.default
    own_mm, own_addmm = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm"))

    def mm(keys: torch.DispatchKeySet, x: Tensor, weight: Tensor) -> Tensor:
        if not _suits(x, weight):
            return own_mm.call_boxed(keys, x, weight)
        return linear(x, _dense(weight.t()), None, "none", [], "")

    def addmm(
        keys: torch.DispatchKeySet, bias: Tensor, x: Tensor, weight: Tensor, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        plain = beta == alpha == 1 and bias.shape == weight.shape[1:] and bias.dtype == x.dtype and bias.is_contiguous()
        if not plain or not _suits(x, weight):
            return own_addmm.call_boxed(keys, bias, x, weight, beta=beta, alpha=alpha)
        return linear(x, _dense(weight.t()), bias, "none", [], "")

    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        library.impl("mm", mm, "CPU", with_keyset=True)
        library.impl("addmm", addmm, "CPU", with_keyset=True)
    return library


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies x (rows, inner) and weight (inner, columns) faster."""
    return (
        x.shape[0] >= LEAST_ROWS
        and x.shape[1] == weight.shape[0]  # or torch's own says what is wrong
        and x.shape[1] in INNER
        and weight.shape[1] >= LEAST_COLUMNS
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous()
    )


def _dense(weight: Tensor) -> Tensor:
    """A matrix without gaps, row by row or column by column: others are multiplied a hundred times slower."""
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
