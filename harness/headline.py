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
    """In the words of a report: what it is the mean of."""
    mean_key: str
    """The same with every class counting alike."""
    mean_title: str
    beside: tuple[str, ...] = ()
    """Further fields that only results of such tasks have."""
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
    meaning="instance mIoU on the test split (mean over shapes of the mean over their category's parts)",
    mean_key="class_miou",
    mean_title="class mIoU",
    beside=("point_accuracy", "category_miou"),
)
HEADLINES = {
    "classification": ACCURACY,
    "few-shot classification": ACCURACY,
    "part segmentation": INSTANCE_MIOU,
}
"""By the task of the dataset."""


def headline_of(task: str) -> Headline:
    """What results of a task are judged by. Raises KeyError for a task that has no results."""
    return HEADLINES[task]


def others(headline: Headline) -> set[str]:
    """Fields of `metrics` that results of other tasks have, and these have not."""
    return {key for other in HEADLINES.values() for key in other.keys} - set(headline.keys)
