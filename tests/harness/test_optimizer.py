"""Our AdamW is torch's, without the compiler's import."""

from __future__ import annotations

import subprocess
import sys

import torch

from harness.optimizer import AdamW

STEPS = """\
import sys, torch
from accelerate import Accelerator
from harness.optimizer import AdamW
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(3, 3)
model, optimizer = accelerator.prepare(model, AdamW(model.parameters(), lr=0.1, fused=True))
for _ in range(2):
    accelerator.backward(model(torch.ones(2, 3)).sum())
    accelerator.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.AdamW]) -> tuple[torch.Tensor, dict[str, object]]:
    torch.manual_seed(0)
    weight, target = torch.nn.Parameter(torch.randn(5, 4)), torch.randn(5, 4)
    optimizer = kind([{"params": [weight], "weight_decay": 0.1}], lr=0.1, fused=True)
    for _ in range(5):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    return weight.detach(), optimizer.state_dict()


def test_equals_torch() -> None:
    ours, theirs = trained(AdamW), trained(torch.optim.AdamW)
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=0)


def test_the_graph_is_not_recorded() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.is_leaf
    assert not optimizer.state[weight]["exp_avg"].requires_grad


def test_the_compiler_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
