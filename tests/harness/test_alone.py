"""One trial without Ray: `python -m harness.train`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.alone import main
from tests.faults.conftest import SUITE

LORA = ("--only", "method=lora", "--only", "seed=0", "--set", "train.epochs=2")


@pytest.fixture
def suite(tmp_path: Path) -> str:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("    set: {train.epochs: 20}", "    set: {train.epochs: 2}"))
    return str(tmp_path / "suite.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "method=lora"), "2 trials"),
        (("--only", "seed=9"), "no seed '9'"),
        ((*LORA, "--set", "resources.processes=2"), "accelerate launch --multi_gpu --num_processes 2"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], words: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([suite, *arguments, "--output", str(tmp_path / "results")])
    assert ended.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_it_leaves_what_harness_run_leaves(count: int, suite: str, tmp_path: Path) -> None:
    start = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"] if count > 1 else []
    command = [sys.executable, *start, "-m", "harness.train", suite, *LORA, "--output", str(tmp_path / "results")]
    command += ["--set", f"resources.processes={count}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "lora point_mae sweethome12 seed 0: accuracy" in done.stdout, done.stderr
    (path,) = (tmp_path / "results").glob("trials/*/result.json")
    result = json.loads(path.read_text())
    assert result["status"] == "done" and result["spec"]["resources"]["processes"] == count
    assert (path.parent / "adapter" / "adapter_model.safetensors").exists()
    if count == 1:
        again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert again.returncode == 2 and "is done already" in again.stderr
