"""ModelNet40 few-shot: folds of a few classes with a few training clouds each, official or drawn by a seed.

    ModelNetFewshot/5way_10shot/0.pkl … 9.pkl    as Point-BERT hands them out: clouds, label in the fold, class
    ModelNetFewshot/5way_10shot/0.json …         drawn by `harness data fewshot`: which items of modelnet40

Both by the rule of Point-BERT's generate_few_shot_data.py: `way` classes, of each `shot` clouds of ModelNet40's
training split to train on and 20 of its test split to test on. Results are reported as mean and deviation over folds. A
pickle goes before a JSON file of the same fold. Clouds are normalised as modelnet40's are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from harness.atomic import read_json, write_atomically
from harness.data.cache import Arrays, Converted, digest_of
from harness.data.dataset import PointClouds, Split, Task
from harness.data.modelnet40 import LICENCE, MODELNET40, ModelNet40, integer_labels, normalise, stack_clouds
from harness.data.official import OfficialDataset
from harness.data.pickles import read_pickle
from harness.data.sources import AGAIN, is_there
from harness.errors import UserError

FOLDS = 10
TEST_ITEMS = 20
"""Per class."""


@dataclass(frozen=True)
class FewShot(OfficialDataset):
    """One fold; `with_fold` gives the others."""

    task: ClassVar[Task] = "few-shot classification"
    folds: ClassVar[int] = FOLDS

    way: int
    """Classes."""
    shot: int
    """Training clouds per class."""
    fold: int = 0
    modelnet: ModelNet40 = MODELNET40
    """What folds are drawn from."""

    def with_fold(self, fold: int) -> FewShot:
        """Another fold of the same setting."""
        return replace(self, fold=fold)

    def fold_file(self, root: Path) -> Path:
        """The fold's pickle, or its JSON file; the pickle's place when neither is there."""
        setting = (f"{self.way}way_{self.shot}shot", f"{self.way}way{self.shot}shot")  # both are in use
        files = [root / "ModelNetFewshot" / folder / f"{self.fold}.pkl" for folder in setting]
        drawn = _drawn_file(root, way=self.way, shot=self.shot, fold=self.fold)
        return next((path for path in [*files, drawn] if is_there(path)), files[0])

    def split_files(self, split: Split, root: Path) -> list[Path]:
        """The fold's file, for both splits, and what a drawn one points to."""
        path = self.fold_file(root)
        return [path] if path.suffix == ".pkl" else [path, *self.modelnet.split_files(split, root)]

    def sources(self, root: Path) -> list[Path]:
        """The files of every fold, and ModelNet40's for drawn ones: `missing` and the sizes speak of all folds."""
        folds = [self.with_fold(fold).fold_file(root) for fold in range(FOLDS)]
        return folds + (self.modelnet.sources(root) if any(path.suffix == ".json" for path in folds) else [])

    def entry_name(self, split: Split) -> str:
        """A folder per fold."""
        return f"{self.name}/{self.fold}/{split}"

    def convert(self, split: Split, root: Path) -> Converted:
        """A pickle's clouds by the cache; a drawn fold's from modelnet40's own entry."""
        path = self.fold_file(root)
        return self._drawn(path, split, root) if path.suffix == ".json" else super().convert(split, root)

    def read(self, split: Split, root: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The clouds of the fold's pickle, normalised."""
        path = self.fold_file(root)
        content = read_pickle(path)
        items = content.get(split) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(i, tuple | list) and len(i) == 3 for i in items):
            raise UserError(f"{path}: expected '{split}' items of points, label and class; {AGAIN}")
        points = stack_clouds([item[0] for item in items], points=self.points, path=path)
        labels = integer_labels([item[1] for item in items], path)
        self.check(points, labels, path)
        return normalise(points), labels

    def _drawn(self, path: Path, split: Split, root: Path) -> Converted:
        card = read_json(path)
        again = "draw it again (harness data fewshot)"
        try:
            indices, labels = np.array(card[split], np.int64).reshape(-1, 2).T
            digest = card["digests"][split]
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{path}: is no few-shot fold; {again}") from None
        whole = self.modelnet.load(split, root)
        if whole.digest != digest:
            raise UserError(f"{path}: was drawn from other {self.modelnet.name} clouds than those here; {again}")
        if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(whole.labels):
            raise UserError(f"{path}: points to items that {self.modelnet.name} does not have; {again}")
        points = np.ascontiguousarray(whole.points[indices], np.float32)
        self.check(points, labels, path)
        arrays: Arrays = {"points": points, "labels": np.ascontiguousarray(labels)}
        return Converted(arrays, digest_of(arrays), None)


def load_fold(root: Path, *, way: int, shot: int, fold: int) -> tuple[PointClouds, PointClouds]:
    """Train and test clouds of a fold, 0 to 9. Raises UserError when the fold is not there or wrong."""
    dataset = declare(way=way, shot=shot).with_fold(fold)
    return dataset.load("train", root), dataset.load("test", root)


def draw_folds(
    root: Path, *, way: int, shot: int, seed: int, folds: int = FOLDS, modelnet: ModelNet40 = MODELNET40
) -> list[Path]:
    """Draw folds from ModelNet40 and write their files; the same for the same seed, whatever else is drawn.

    Raises UserError where an official fold lies, or where ModelNet40 has too few classes or clouds.
    """
    clouds = {split: modelnet.load(split, root) for split in get_args(Split)}
    wanted = {"train": shot, "test": TEST_ITEMS}
    fit = set(range(len(modelnet.classes)))
    for split, count in wanted.items():
        fit &= set(np.flatnonzero(np.bincount(clouds[split].labels, minlength=len(modelnet.classes)) >= count).tolist())
    if len(fit) < way:
        raise UserError(
            f"{way}-way {shot}-shot: {len(fit)} classes of {modelnet.name} have {shot} clouds to train and "
            f"{TEST_ITEMS} to test on; ask for fewer"
        )
    contents: dict[Path, str] = {}
    for fold in range(folds):
        official = replace(declare(way=way, shot=shot), fold=fold).fold_file(root)
        if official.suffix == ".pkl" and is_there(official):
            raise UserError(f"{official}: the official fold is here and goes first; nothing was drawn")
        rng = np.random.default_rng([seed, way, shot, fold])
        classes = rng.permutation(sorted(fit))[:way].tolist()
        card: dict[str, Any] = {"format": 1, "way": way, "shot": shot, "fold": fold, "seed": seed, "classes": classes}
        card["digests"] = {split: found.digest for split, found in clouds.items()}
        for split, count in wanted.items():
            members = [np.flatnonzero(clouds[split].labels == kind) for kind in classes]
            items = [[int(i), label] for label, own in enumerate(members) for i in rng.permutation(own)[:count]]
            card[split] = rng.permutation(items).tolist()
        contents[_drawn_file(root, way=way, shot=shot, fold=fold)] = json.dumps(card)
    try:
        for path, content in contents.items():
            write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{root / 'ModelNetFewshot'}: cannot be written ({error.strerror})") from None
    return list(contents)


def _drawn_file(root: Path, *, way: int, shot: int, fold: int) -> Path:
    return root / "ModelNetFewshot" / f"{way}way_{shot}shot" / f"{fold}.json"


def declare(*, way: int, shot: int) -> FewShot:
    """The dataset of a setting, at fold 0."""
    return FewShot(
        name=f"modelnet40_fewshot_{way}w{shot}s",
        version=1,
        classes=tuple(f"class {index}" for index in range(way)),
        train_items=way * shot,
        test_items=way * TEST_ITEMS,
        points=8192,
        up="y",
        normalised=True,
        licence=LICENCE,
        source="Get ModelNetFewshot (Point-BERT's DATASET.md has a link) into the data folder (HARNESS_DATA), or draw "
        f"folds of your own from modelnet40: harness data fewshot --way {way} --shot {shot}.",
        way=way,
        shot=shot,
    )


FEWSHOT_5W10S, FEWSHOT_5W20S = declare(way=5, shot=10), declare(way=5, shot=20)
FEWSHOT_10W10S, FEWSHOT_10W20S = declare(way=10, shot=10), declare(way=10, shot=20)
