"""Fine-tuned models that the papers' authors publish: where, what was trained on, and what their tensors do not tell.

Sources are the tables of the repositories' READMEs and their configuration files. Digests are not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.models.weights import OfficialFile


@dataclass(frozen=True)
class KnownModel:
    """One published model."""

    name: str
    official: OfficialFile
    backbone: str
    method: str
    data: str
    published: float
    """Accuracy in the authors' table, 0 to 1."""
    settings: dict[str, Any] = field(default_factory=dict)
    """As `--set` gives them."""


def _on_github(repository: str, section: str, tag: str, file: str) -> OfficialFile:
    home = f"https://github.com/{repository}"
    return OfficialFile(page=f"{home} (section '{section}')", file=file, url=f"{home}/releases/download/{tag}/{file}")


def _dapt(data: str, file: str, published: float, settings: dict[str, Any], *pool: str) -> KnownModel:
    official = _on_github("LMD0311/DAPT", "Main Results (Point-MAE)", "ckpt", file)
    return KnownModel(
        f"dapt_{data}", official, "point_mae", "dapt", data, published, settings | {"method.pool": list(pool)}
    )


def _full(data: str, file: str, published: float, settings: dict[str, Any]) -> KnownModel:
    official = _on_github("Pang-Yatian/Point-MAE", "Point-MAE Models", "main", file)
    return KnownModel(f"point_mae_{data}", official, "point_mae", "full", data, published, settings)


_SIX = {"backbone.heads": 6, "backbone.group_size": 32, "data.sampling": "fps"}
_SCANS = _SIX | {"backbone.groups": 128, "data.points": 2048}
_MODELNET = _SIX | {"backbone.groups": 64, "data.points": 1024}

MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in (
        _dapt("scanobjectnn_pb_t50_rs", "scan_hardest.pth", 0.8508, _SCANS, "class", "prompt_mean", "patch_max"),
        _dapt("scanobjectnn_obj_bg", "scan_objbg.pth", 0.9088, _SCANS, "class", "prompt_mean", "patch_max"),
        _dapt("scanobjectnn_obj_only", "scan_objonly.pth", 0.9019, _SCANS, "class", "prompt_mean"),
        _dapt("modelnet40", "modelnet.pth", 0.935, _MODELNET, "class", "patch_max"),
        _full("scanobjectnn_pb_t50_rs", "scan_hardest.pth", 0.8518, _SCANS),
        _full("scanobjectnn_obj_bg", "scan_objbg.pth", 0.9002, _SCANS),
        _full("scanobjectnn_obj_only", "scan_objonly.pth", 0.8829, _SCANS),
        _full("modelnet40", "modelnet_1k.pth", 0.938, _MODELNET),
    )
}
