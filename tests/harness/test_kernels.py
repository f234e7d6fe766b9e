"""The GPU's kernel gives the indices of plain torch: by Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.geometry import farthest_points, sampling

pytest.importorskip("triton", reason="Triton is not installed")
MODULE = "harness.geometry.kernels"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
by_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="run by the first test, where Triton is imported to interpret"
)


@pytest.mark.skipif(INTERPRETED, reason="runs the others")
def test_by_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout


def clouds(total: int) -> Tensor:
    """(5, N, 3): at random, with copies, on a grid of many ties, near the origin, and all of them there."""
    generator = torch.Generator().manual_seed(total)
    points = torch.randn(5, total, 3, generator=generator)
    points[1, total // 2 :] = points[1, : total - total // 2].clone()
    points[2] = points[2].mul(2).round()
    points[3, ::2] *= 1e-3
    points[4] *= 1e-3
    return points


@by_interpreter
@pytest.mark.parametrize("total", [5, 64, 100, 600])
def test_interpreted_the_kernel_picks_as_plain_torch(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module(MODULE)
    points, start = clouds(total), torch.tensor([0, 1, 4, 2, 3])
    expected = farthest_points(points, 20), farthest_points(points, 20, start=start)
    monkeypatch.setattr(sampling, "_sampler", lambda planes: kernels.farthest)
    assert torch.equal(farthest_points(points, 20), expected[0])
    assert torch.equal(farthest_points(points, 20, start=start), expected[1])


@by_interpreter
def test_interpreted_it_is_used() -> None:
    kernels = importlib.import_module(MODULE)
    assert kernels.sampler(torch.device("cpu"), sampling._plain) is kernels.farthest


@by_interpreter
def test_interpreted_it_is_not_used_where_it_gives_other_indices_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module(MODULE)

    def one_off(*given: Any) -> Tensor:
        return sampling._plain(*given).roll(1)

    def fused(planes: Tensor, distance: Tensor, first: Tensor, count: int) -> Tensor:
        """Sums rounded once with the products in them, as by fused operations: in 64 bits products are exact."""
        picks = [first]
        for _ in range(count - 1):
            x, y, z = planes - planes.gather(2, picks[-1].expand(3, -1)[..., None])
            sum_of_two = (x.double() * x.double() + y * y).float()
            distance = torch.minimum(distance, (z.double() * z.double() + sum_of_two).float())
            picks.append(distance.argmax(1))
        return torch.stack(picks, 1)

    def broken(*given: Any) -> Tensor:
        raise RuntimeError("no C compiler")

    for kernel in (one_off, fused, broken):
        kernels.sampler.cache_clear()
        monkeypatch.setattr(kernels, "farthest", kernel)
        assert kernels.sampler(torch.device("cpu"), sampling._plain) is None


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled to be interpreted")
@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_it_compiles_for_gpus_to_products_and_sums_that_are_not_fused(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to machine code, which takes no GPU; for the largest clouds too without a register in memory."""
    compiler = pytest.importorskip("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    kernels = importlib.import_module(MODULE)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("planes", "start"), "*fp32") | dict.fromkeys(("first", "picks"), "*i64")
    types |= dict.fromkeys(("batch", "total", "count"), "i32") | dict.fromkeys(("BLOCK", "OUTSIDE"), "constexpr")
    constants = {"BLOCK": kernels.MOST_POINTS, "OUTSIDE": kernels.OUTSIDE}
    source = compiler.ASTSource(kernels._farthest, signature=types, constexprs=constants)
    code = compiler.compile(source, target=target, options=kernels.OPTIONS).asm["sass"]
    assert "FMUL" in code and "FADD" in code and "FFMA" not in code
    assert "STL" not in code


def test_without_a_gpu_it_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)  # importing it would fail
    assert sampling._sampler(torch.zeros(3, 1, 8)) is sampling._plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("total", [5, 100, 2048, 8192])
def test_on_a_gpu_too(total: int) -> None:
    kernels = importlib.import_module(MODULE)
    points = clouds(total)
    planes = torch.zeros(3, 1, 8, device="cuda")
    assert sampling._sampler(planes) is kernels.farthest
    assert torch.equal(farthest_points(points.cuda(), 64).cpu(), farthest_points(points, 64))
