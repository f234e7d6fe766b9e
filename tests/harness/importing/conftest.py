"""Reading in this process, where a test is not about the other one: starting it costs two seconds a file."""

from pathlib import Path

import pytest

from harness.importing import child, reading


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: Path, folder: Path) -> reading._Answer:
        child.main(path, folder)
        return reading._Answer.model_validate_json((folder / child.ANSWER).read_bytes())

    monkeypatch.setattr(child, "confine", lambda size: None)
    monkeypatch.setattr(reading, "_answer", answer)
