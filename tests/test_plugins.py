"""Third parties' methods and datasets: installed, listed, counted, run, held to the contract; broken ones are named.

The two packages in tests/plugins are the ones that docs/add_a_method.md and docs/add_a_dataset.md print (tests/docs).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = ROOT / "tests" / "plugins"
SUITE = """\
format: 1
name: plugins
seeds: 1
datasets: [solids]
backbones:
  point_mae: {preset: tiny, depth: 1, groups: 8, group_size: 8}
methods:
  ia3: {}
  linear_probe: {}
train: {epochs: 1, batch_size: 16, warmup_epochs: 0, drop_path: 0}
"""


def python(*arguments: str, cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """A Python that sees the packages in `site`, and this clone before any other."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, site)))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def harness(*arguments: str, cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return python("-c", "from harness.cli import main; main()", *arguments, cwd=cwd, site=site)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both plug-ins installed, offline, from copies: nothing is built in this clone."""
    folder = tmp_path_factory.mktemp("plugins")
    copies = [shutil.copytree(PLUGINS / name, folder / name) for name in ("ia3", "solids")]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), *map(str, copies)]
    subprocess.run(install, check=True, timeout=300)
    return folder / "site"


@pytest.mark.slow
def test_installed_plugins_are_listed_and_counted(site: Path, tmp_path: Path) -> None:
    listed = json.loads(harness("list", "--json", cwd=tmp_path, site=site).stdout)
    assert {"ia3", "lora"} <= set(listed["methods"]) and {"solids", "sweethome12"} <= set(listed["datasets"])
    counts = json.loads(harness("show", "method", "ia3", "--json", cwd=tmp_path, site=site).stdout)
    assert (counts["added"], counts["unfrozen"]) == (12 * (2 * 384 + 1536), 768)
    shown = json.loads(harness("show", "dataset", "solids", "--json", cwd=tmp_path, site=site).stdout)
    assert (shown["train_items"], shown["missing"]) == (64, None)


@pytest.mark.slow
def test_a_suite_of_plugins_runs(site: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    done = harness("run", "suite.yaml", "--only", "method=ia3", "--no-mlflow", "--json", cwd=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"]) == (1, {})
    (path,) = tmp_path.glob("results/trials/*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["metrics"]["total"], result["parameters"]["added"]) == ("done", 32, 2 * 96 + 384)


@pytest.mark.slow
def test_the_contract_holds_an_installed_method(site: Path) -> None:
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/test_contract.py", "-k", "ia3"]
    done = python(*arguments, cwd=ROOT, site=site)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 8, done.stdout


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_example_dataset_keeps_the_contract(split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS / "solids"))
    from harness_solids import SOLIDS

    clouds, again = SOLIDS.load(split, tmp_path), SOLIDS.load(split, tmp_path)
    items = SOLIDS.train_items if split == "train" else SOLIDS.test_items
    assert clouds.points.shape == (items, SOLIDS.points, 3) and clouds.points.dtype == np.float32
    assert set(clouds.labels) == set(range(len(SOLIDS.classes)))
    assert np.linalg.norm(clouds.points, axis=2).max() == pytest.approx(1)
    assert clouds.digest == again.digest and np.array_equal(clouds.points, again.points)
    other = SOLIDS.load("test" if split == "train" else "train", tmp_path)
    assert other.digest != clouds.digest


def fake(site: Path, package: str, *, kind: str, name: str, code: str) -> None:
    """What installing a package of one module would leave in `site`."""
    site.mkdir(exist_ok=True)
    (site / f"{package}.py").write_text(code)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.{kind}]\n{name} = {package}:THING\n")


BROKEN = {
    "needs": ("import a_library_that_is_not_here", "No module named 'a_library_that_is_not_here'"),
    "raises": ("raise RuntimeError('needs a\\ndriver')", "RuntimeError: needs a driver"),
    "unfinished": ("def broken(:", "SyntaxError"),
    "empty": ("", "has no attribute 'THING'"),
    "number": ("THING = 3", "must be a subclass of Method, and is 3"),
}


def test_a_broken_plugin_is_named_with_the_reason(tmp_path: Path) -> None:
    for name, (code, _) in BROKEN.items():
        fake(tmp_path / "site", f"with_{name}", kind="methods", name=name, code=code)
    script = """if True:
        import sys
        from harness import registry
        from harness.errors import UserError
        for name in sys.argv[1:]:
            try:
                registry.get("methods", name)
            except UserError as error:
                print(error)
        """
    done = python("-c", script, *BROKEN, cwd=tmp_path, site=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    for line, (name, (_, reason)) in zip(done.stdout.splitlines(), BROKEN.items(), strict=True):
        assert line.startswith(f"plug-in '{name}' (with_{name}:THING of package with_{name})") and reason in line


def test_a_broken_plugin_harms_only_those_who_use_it(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for kind in ("methods", "backbones", "datasets"):
        fake(site, f"brittle_{kind}", kind=kind, name="glass", code="raise RuntimeError('it broke')")
    (tmp_path / "suite.yaml").write_text(SUITE.replace("solids", "sweethome12").replace("ia3", "glass"))
    for arguments in (["list"], ["plan", "quickstart"]):
        done = harness(*arguments, cwd=tmp_path, site=site)
        assert done.returncode == 0, done.stderr
    for arguments in (["show", "method", "glass"], ["run", "suite.yaml"]):
        done = harness(*arguments, cwd=tmp_path, site=site)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "plug-in 'glass' (brittle_methods:THING" in line and line.endswith("RuntimeError: it broke")


def test_two_plugins_of_one_name_are_both_named(tmp_path: Path) -> None:
    fake(tmp_path / "site", "theirs", kind="methods", name="lora", code="THING = None")
    done = harness("show", "method", "lora", cwd=tmp_path, site=tmp_path / "site")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "two plug-ins call themselves 'lora'" in line
    assert "methods.lora:LoRA of package pointpeft-harness" in line and "theirs:THING of package theirs" in line
