"""Reading in this process, where a test is not about the other one: starting it costs two seconds a file."""

from pathlib import Path

import pytest

from harness.importing import child, reading
from tests.harness.importing.recorded_models import make_dataset, record


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: Path, folder: Path) -> reading._Answer:
        child.main(path, folder)
        return reading._Answer.model_validate_json((folder / child.ANSWER).read_bytes())

    monkeypatch.setattr(child, "confine", lambda size: None)
    monkeypatch.setattr(reading, "_answer", answer)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that is not there yet."""
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def shapes(root: Path) -> None:
    """Datasets of as many classes as the recorded models have."""
    for name, case in (("five", "pointmae_full"), ("fifteen", "m2ae_scan_full")):
        recorded = record(case)
        classes = recorded.manifest.model.head.classes
        make_dataset(root, name, recorded.inputs["points"], recorded.inputs["labels"], classes=classes)
    make_dataset(
        root, "many", *(record("pointmae_full").inputs[key] for key in ("points", "labels")), classes=5, each=8
    )
