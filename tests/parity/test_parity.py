"""Our numbers are the official ones: outputs recorded from the papers' code, through the same path as a real trial.

Each manifest names encoder, method and head in this project's terms; the stored state has the official names. Dropout
and drop path are off in what was recorded; batch norms, the frozen tokenizer's included, use batch statistics. The
checks themselves are in case.py, because test_mutations.py requires that they can fail.
"""

import pytest

from tests.parity import case as parity
from tests.parity.case import Case


@pytest.fixture(params=parity.NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_logits_and_loss(case: Case) -> None:
    parity.check_logits_and_loss(case)


def test_gradients(case: Case) -> None:
    parity.check_gradients(case)


def test_batch_norm_buffers_after_a_step(case: Case) -> None:
    parity.check_batch_norm_buffers_after_a_step(case)


def test_counts_and_groups(case: Case) -> None:
    parity.check_counts_and_groups(case)


def test_five_steps_of_adamw(case: Case) -> None:
    parity.check_five_steps_of_adamw(case)
