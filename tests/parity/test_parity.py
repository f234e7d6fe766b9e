"""Our numbers are the official ones: outputs recorded from the papers' code, through the same path as a real trial.

The comparison is `harness verify`'s own (harness/verify.py; docs/verify.md has the tolerances). test_mutations.py
requires that it can fail.
"""

from pathlib import Path

import pytest
import torch

from harness.recorded import bundled, read_record
from harness.verify import checks


@pytest.mark.parametrize("file", bundled(), ids=lambda file: file.stem)
def test_we_agree_with_the_official_code(file: Path) -> None:
    found = list(checks(read_record(file), device=torch.device("cpu"), dtype=torch.float32))
    assert {"eval logits", "train logits", "loss", "gradients, relative", "AdamW loss 5"} <= {c.name for c in found}
    assert [check for check in found if not check.passed] == []


def test_a_record_of_every_family_is_bundled() -> None:
    models = [read_record(file).manifest.model for file in bundled()]
    found = {(model.encoder.name, model.method.name) for model in models}
    assert found >= {("point_mae", "full"), ("point_mae", "dapt"), ("point_mae", "point_peft")}
    assert found >= {("point_m2ae", "full"), ("point_m2ae", "point_peft")}
