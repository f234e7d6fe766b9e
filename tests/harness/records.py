"""Bundled records in another folder, to be spoiled there, and the command that verifies them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.cli import main
from harness.recorded import BUNDLED

DAPT, PEFT, FULL = "dapt_use_mean_None", "pointpeft_mae", "pointmae_full"


def copied(name: str, folder: Path) -> Path:
    """A bundled record in another folder."""
    for file in json.loads((BUNDLED / f"{name}.json").read_text())["state_files"]:
        shutil.copyfile(BUNDLED / file, folder / file)
    return Path(shutil.copyfile(BUNDLED / f"{name}.json", folder / f"{name}.json"))


def change_manifest(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = file.with_suffix(".safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code
