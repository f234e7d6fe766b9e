"""What a task's results are judged by: the number that models are chosen and ranked by, and those beside it.

Results say which task they are of, so that reports find their headline without plug-ins or data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """Fields of result.json's `metrics`, and the words for them. All are fractions from 0 to 1."""

    key: str
    """The headline number."""
    title: str
    meaning: str
    """What it is of one trial, in the words of a report."""
    mean_key: str
    """The same with every class counting alike."""
    mean_title: str
    by_category: str | None = None
    """The field that has it by category, where there is one."""
    ignores: tuple[str, ...] = ()
    """Settings that such results do not depend on, by field path."""
    beside: tuple[str, ...] = ()
    """Further fields that only results of such tasks have."""
    scored: bool = True
    """Whether there is such a number at all; else trials are for what they cost."""
    counted: bool = False
    """Whether the headline is correct / total items, so that only certain values can occur."""

    @property
    def validation(self) -> str:
        """The field of the headline on the validation split."""
        return f"validation_{self.key}"

    @property
    def best_on_test(self) -> str:
        """The field of the papers' number, the best of all epochs on the test split."""
        return f"{self.key}_best_on_test"

    @property
    def vote(self) -> str:
        """The field of the headline by vote."""
        return f"{self.key}_vote"

    @property
    def keys(self) -> tuple[str, ...]:
        """All fields that only results of such tasks have."""
        return (self.key, self.mean_key, self.validation, self.best_on_test, self.vote, *self.beside)


ACCURACY = Headline(
    key="accuracy",
    title="accuracy",
    meaning="overall accuracy on the test split",
    mean_key="class_accuracy",
    mean_title="class accuracy",
    beside=("correct",),
    counted=True,
)
INSTANCE_MIOU = Headline(
    key="instance_miou",
    title="instance mIoU",
    meaning="instance mIoU on the test split",
    mean_key="class_miou",
    mean_title="class mIoU",
    by_category="category_miou",
    ignores=("method.pool",),
    beside=("point_accuracy", "category_miou"),
)
NO_SCORE = Headline(
    key="score",
    title="score",
    meaning="nothing: random clouds have no score",
    mean_key="class_score",
    mean_title="class score",
    scored=False,
)
"""Of trials that are for what they cost; such fields there are none."""
HEADLINES = {
    "classification": ACCURACY,
    "few-shot classification": ACCURACY,
    "part segmentation": INSTANCE_MIOU,
    "cost": NO_SCORE,
}
"""By the task of the dataset."""


def by_key(key: str) -> Headline:
    """The headline of a field of `metrics`. Raises KeyError for any other field."""
    return {headline.key: headline for headline in HEADLINES.values()}[key]


def headline_of(task: str) -> Headline:
    """What results of a task are judged by. Raises KeyError for a task that has no results."""
    return HEADLINES[task]


def others(headline: Headline) -> set[str]:
    """Fields of `metrics` that results of other tasks have, and these have not."""
    return {key for other in HEADLINES.values() for key in other.keys} - set(headline.keys)
