"""Tests run one thread per process, as trials do, and draw the same numbers every time."""

import pytest
import torch

from harness.processor import prepare

prepare(threads=1)  # two threads on two cores that others use only wait for each other


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)
