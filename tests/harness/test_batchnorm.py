"""Batch norms with the statistics of all processes; test_processes.py has them in several."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.models.batchnorm import make_global
from harness.processes import join, leave


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    join(tmp_path / "rendezvous", index=0, count=1)
    yield
    leave()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_torchs_own(dtype: torch.dtype, group: None) -> None:
    """In half precision too, where a mean of thousands of points far from zero would lose its digits."""
    torch.manual_seed(0)
    x = (torch.randn(64, 5, 100) + 7).to(dtype)
    ours, theirs = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    make_global(ours)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(value) for norm, value in zip((ours, theirs), inputs, strict=True)]
    for output in outputs:
        assert output.dtype == dtype
        (output.float() * torch.linspace(-1, 1, 100)).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(outputs[0], outputs[1], **close)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-2, atol=1e-2 * 6400)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)
