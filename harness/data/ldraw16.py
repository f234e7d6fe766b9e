"""ldraw16: toy-brick parts of the LDraw library in 16 classes, and a scan-like variant of the same items.

`harness data prepare ldraw16` makes both from an LDraw library (harness/data/prepare/ldraw16.py), as
ROOT/ldraw16/NAME.safetensors (points, labels, test) and NAME.json, the card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from harness.atomic import read_json
from harness.data.clouds_file import read_split
from harness.data.dataset import Dataset, PointClouds, Split
from harness.errors import UserError

FOLDER = "ldraw16"
VERSION = 1
NAMES = ("ldraw16", "ldraw16_scanlike")
MAKE = (
    "`harness data prepare ldraw16` makes ldraw16 and ldraw16_scanlike of the Debian package ldraw-parts "
    "(`apt-get install ldraw-parts`, non-free component) or an unpacked complete.zip of ldraw.org (--source)"
)


@dataclass(frozen=True)
class PreparedDataset(Dataset):
    """A dataset that a command makes; declared as it comes out of the recorded version of its source."""

    digest: str
    """SHA-256 of the recorded file with the clouds."""

    def missing(self, root: Path) -> str | None:
        """Which file is not there, and the command that makes it."""
        for path in (self._clouds(root), self._card(root)):
            if not path.is_file():
                return f"dataset '{self.name}' lacks {path}; {MAKE}"
        return None

    def sources(self, root: Path) -> list[Path]:
        """The clouds and their card."""
        return [self._clouds(root), self._card(root)]

    def load(self, split: Split, root: Path) -> PointClouds:
        """Read one split. Raises UserError when the file is missing, or is not the one that its card declares."""
        prepared, card = self.as_prepared(root), self._read_card(root)
        return read_split(self._clouds(root), split, declared=prepared, digest=str(card["digest"]), again="run " + MAKE)

    def as_prepared(self, root: Path) -> Self:
        """The declaration with the sizes of the files that are here: another version of the source makes others."""
        sizes = self._read_card(root)["sizes"]
        return replace(self, train_items=int(sizes["train"]), test_items=int(sizes["test"]))

    def notes(self, root: Path) -> list[str]:
        """What is other than recorded."""
        card = self._read_card(root)
        if card["digest"] == self.digest:
            return []
        recorded, found = card["recorded"], card["recorded"]["differences"]
        return [
            f"not the clouds made from {recorded['package']} {recorded['version']}: {found['absent']} items absent, "
            f"{found['new']} new, {found['changed']} changed; results compare only with others on these files"
        ]

    def _clouds(self, root: Path) -> Path:
        return root / FOLDER / f"{self.name}.safetensors"

    def _card(self, root: Path) -> Path:
        return root / FOLDER / f"{self.name}.json"

    def _read_card(self, root: Path) -> dict[str, Any]:
        """Raises UserError for one that is damaged, or of another version of this dataset."""
        path = self._card(root)
        card = read_json(path)
        try:
            sizes, found = card["sizes"], card["recorded"]["differences"]
            numbers = [sizes["train"], sizes["test"], found["absent"], found["new"], found["changed"]]
            whole = all(isinstance(number, int) for number in numbers) and isinstance(card["digest"], str)
            named = (card["name"], card["classes"]) == (self.name, list(self.classes))
            texts = {"package", "version"} <= card["recorded"].keys()
        except (KeyError, TypeError, AttributeError):
            whole = named = texts = False
        if not (whole and named and texts):
            raise UserError(f"{path}: damaged card of dataset '{self.name}'; run {MAKE}")
        if card.get("version") != self.version:
            raise UserError(f"{path}: version {card.get('version')}, this harness knows {self.version}; run {MAKE}")
        return dict(card)


def _declare(name: str, digest: str) -> PreparedDataset:
    return PreparedDataset(
        name=name,
        version=VERSION,
        classes=(
            "Animal", "Baseplate", "Brick", "Container", "Door", "Hinge", "Minifig Headwear", "Panel",
            "Plant", "Plate", "Slope", "Tile", "Tyre", "Wheel", "Window", "Windscreen",
        ),
        train_items=TRAIN_ITEMS,
        test_items=TEST_ITEMS,
        points=1024,
        up="z",
        normalised=True,
        licence="CC BY 2.0 (the LDraw authors named in its card); see NOTICE",
        source=MAKE,
        digest=digest,
    )  # fmt: skip


TRAIN_ITEMS, TEST_ITEMS = 1099, 537
"""As made from ldraw-parts 2206+ds-1."""
LDRAW16 = _declare("ldraw16", "cfe24152b30df9eb9e11e4b3bb574cec1b3fe164fe12b2c2b1411bd5a0b948d9")
LDRAW16_SCANLIKE = _declare("ldraw16_scanlike", "f4c49aa9074b91f3d9dbe3f844bc1278c82604d3a35a7fa6f570f05b5a1a4e0e")
