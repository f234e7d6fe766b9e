"""A wheel holds all that a run needs: packages, suites, data, weights, entry points."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_runs_shipped_suites(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*build, str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "suites/quickstart.yaml",
        "harness/data/assets/sweethome12.safetensors",
        "harness/data/assets/sweethome12_scanlike.json",
        "harness/models/assets/point_mae_tiny_parts.safetensors",
        "harness/fixtures/dapt_use_mean_max.json",
        "harness/fixtures/dapt_shared_state.safetensors",
        "reports/leaderboard.html.j2",
    ):
        assert needed in names
    assert not any(name.startswith(("tests/", "docs/")) for name in names)
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=300)
    # The target comes first on the path, so its packages and not the clone's are used.
    code = f"import sys; sys.path.insert(0, {str(target)!r}); from harness.cli import main; main()"
    arguments = ["run", "quickstart", "--only", "method=linear_probe", "--only", "seed=0", "--set", "train.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--no-mlflow"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "quickstart" / "report" / "leaderboard.html").is_file()
