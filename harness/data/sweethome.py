"""sweethome12: real furniture of Sweet Home 3D's free libraries, shipped inside the package.

Clean surfaces sampled from CAD models, and a scan-like variant of the same items (one view, floor, noise). How they
were made is in harness/data/prepare; licences and attribution are in NOTICE and in each file's JSON.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from harness.data.dataset import Dataset, PointClouds, Split
from harness.errors import UserError

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class ShippedDataset(Dataset):
    """A dataset that comes with the package: NAME.safetensors (points, labels, test) and NAME.json."""

    digest: str

    @property
    def path(self) -> Path:
        """The file with the clouds."""
        return ASSETS / f"{self.name}.safetensors"

    def missing(self, root: Path) -> str | None:
        """It is always there, unless the installation is damaged."""
        return None if self.path.is_file() else f"{self.path} is missing: the installation is damaged, reinstall"

    def sources(self, root: Path) -> list[Path]:
        """The file in the package."""
        return [self.path]

    def load(self, split: Split, root: Path) -> PointClouds:
        """Read one split; the file is checked against the declared digest."""
        content = self.path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.digest:
            raise UserError(f"{self.path}: digest {digest[:12]} is not the declared {self.digest[:12]}; reinstall")
        tensors = load(content)
        rows = tensors["test"] == (1 if split == "test" else 0)
        return PointClouds(
            points=tensors["points"][rows].astype(np.float32),
            labels=tensors["labels"][rows].astype(np.int64),
            digest=digest,
        )


def _declare(name: str) -> ShippedDataset:
    card = json.loads((ASSETS / f"{name}.json").read_text())
    return ShippedDataset(
        name=name,
        version=card["version"],
        classes=tuple(card["classes"]),
        train_items=card["sizes"]["train"],
        test_items=card["sizes"]["test"],
        points=1024,
        up="z",
        normalised=True,
        licence="CC BY 3.0, CC BY 3.0 US and CC0, per library; see NOTICE",
        source="ships with the harness; made from Debian's package sweethome3d-furniture",
        digest=card["digest"],
    )


SWEETHOME12 = _declare("sweethome12")
SWEETHOME12_SCANLIKE = _declare("sweethome12_scanlike")
