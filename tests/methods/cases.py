"""What the contract is tested on: every registered method on every registered backbone, made small.

Nothing here knows a name: a method or backbone joins by being registered, a plug-in's as well as our own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from harness import registry
from harness.method import Attached, Method, Task, attach
from harness.models.backbone import Backbone

TASK = Task(classes=5, train_items=16)
SMALL = {"depth": 2, "groups": 8, "group_size": 8}


def smallest(name: str) -> Backbone:
    """A backbone's smallest preset, with what SMALL says of depth and patches where it has such settings."""
    model: type[Backbone] = registry.get("backbones", name)
    preset = model.model_fields.get("preset")
    choices = [{"preset": value} for value in get_args(preset.annotation)] if preset else []
    settings: dict[str, Any] = min(choices, key=lambda choice: _size(model.model_validate(choice)), default={})
    for key, value in SMALL.items():
        try:
            smaller = model.model_validate(settings | {key: value})
        except ValidationError:
            continue
        if not smaller.problems(smaller.default_points):
            settings |= {key: value}
    return model.model_validate(settings)


def _size(backbone: Backbone) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in backbone.build(drop_path=0.0).parameters())


@dataclass(frozen=True, eq=False)
class Case:
    """One method with some settings on one backbone."""

    method_name: str
    backbone_name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    independent: bool = True
    """False where predictions depend on the other clouds of a batch by (published) design."""

    def __str__(self) -> str:
        settings = json.dumps(self.settings).translate(str.maketrans("", "", '{}"[] ')) if self.settings else "defaults"
        return f"{self.method_name}-{self.backbone_name}-{settings}"

    @cached_property
    def method(self) -> Method:
        method = registry.get("methods", self.method_name).model_validate(self.settings)
        assert isinstance(method, Method)
        return method.on(self.backbone)

    @cached_property
    def backbone(self) -> Backbone:
        return smallest(self.backbone_name)

    def clouds(self, count: int, *, seed: int) -> Tensor:
        return torch.rand(count, self.backbone.default_points, 3, generator=torch.Generator().manual_seed(seed)) - 0.5

    def build(self, *, method_seed: int = 0, filled: bool = True, checkpointing: bool = False) -> Attached:
        """The method on its encoder, as a trial builds it, with drop path.

        The encoder always has the same weights; `method_seed` is for what method and head draw in the beginning.
        `filled` says whether before_training was called.
        """
        torch.manual_seed(0)
        encoder = self.backbone.build(drop_path=0.1)
        encoder.activation_checkpointing = checkpointing
        torch.manual_seed(method_seed)
        attached = attach(self.method, encoder, TASK, head=self.backbone.head)
        if filled and attached.before_training is not None:
            attached.before_training(iter(self.clouds(TASK.train_items, seed=1).split(5)))
        return attached


VARIANTS = (
    ("vpt", {"deep": False}, True),
    ("vpt", {"positions": False}, True),
    ("lora", {"targets": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], "alpha": 16}, True),
    ("dapt", {"pool": ["class", "patch_max"]}, True),
    ("point_peft", {"official_quirks": True}, False),  # reads rows of its neighbours in the batch
    ("point_peft", {"prompt_layers": 0}, True),
    ("adaptformer", {"scale": 0.1}, True),
    ("idpt", {"prompt_block": 0, "neighbours": 3, "pool": ["prompt_max"]}, True),
    ("hf_peft", {"config": {"r": 8, "use_rslora": True}}, True),
    ("hf_peft", {"tuner": "ia3", "targets": ["attn.qkv", "mlp.fc2"]}, True),
    ("hf_peft", {"tuner": "oft", "config": {"oft_block_size": 8}}, True),
    ("hf_peft", {"tuner": "vera", "targets": ["attn.qkv", "attn.proj"]}, True),
)
"""Settings that change what a method builds: name, settings, whether clouds of a batch are independent."""


def networks() -> list[str]:
    """Backbones that build different networks: of those that build the same one (ACT is Point-MAE's), the first."""
    found: dict[str, str] = {}
    for name in registry.names("backbones"):
        backbone = smallest(name)
        with torch.device("meta"):
            encoder = backbone.build(drop_path=0.0)
        shapes = [(key, tuple(value.shape)) for key, value in encoder.state_dict().items()]
        found.setdefault(f"{type(encoder)} {backbone.head} {shapes}", name)
    return list(found.values())


CASES = [
    case
    for backbone in networks()
    for case in (
        *(Case(name, backbone) for name in registry.names("methods")),
        *(Case(name, backbone, settings, independent) for name, settings, independent in VARIANTS),
    )
]


def step(attached: Attached, model: nn.Module, optimizer: Optimizer, clouds: Tensor, labels: Tensor) -> Tensor:
    """One training step of `model`, which is or wraps the attached one; returns the scores."""
    scores = model(clouds)
    optimizer.zero_grad()
    F.cross_entropy(scores, labels).backward()
    assert attached.starved() == []
    optimizer.step()
    return scores.detach()
