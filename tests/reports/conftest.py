"""The synthetic suite that most report tests start from."""

from __future__ import annotations

import pytest

from harness.store import SuiteResults
from tests.reports.synthetic import synthetic


@pytest.fixture(scope="session")
def suite() -> SuiteResults:
    """Seven methods x two datasets x three seeds and two references, all done."""
    return synthetic()
