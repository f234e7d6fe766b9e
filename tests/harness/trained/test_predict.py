"""Clouds and files in, probabilities out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import load_trial, registry
from harness.cli import main
from harness.data.imported import clouds_path
from harness.data.importing import import_folder
from harness.errors import UserError
from harness.models.weights import data_root
from harness.settings import Data, Train
from harness.train import run_trial
from tests.harness.test_train import claim, make_trial
from tests.harness.trained.finished import Finish, predictions, stored_clouds

ROOT = Path(__file__).parent.parent.parent.parent


def test_clouds_of_many_kinds(finish: Finish) -> None:
    trained = load_trial(finish("lora").path)
    clouds = np.random.default_rng(0).uniform(-1, 1, (70, 200, 3))
    found = trained.predict(clouds)
    assert (found.shape, found.dtype, found.requires_grad) == ((70, 12), torch.float64, False)
    assert torch.allclose(found.sum(1), torch.ones(70, dtype=torch.float64))
    same = (
        clouds.astype(np.float32),
        torch.from_numpy(clouds),
        torch.from_numpy(clouds).requires_grad_(),
        clouds.tolist(),
    )
    for other in same:
        assert torch.equal(trained.predict(other), found)
    assert torch.allclose(trained.predict(clouds[3]), found[3:4], atol=1e-6)
    assert trained.predict(clouds[:, ::-1]).shape == found.shape
    features = trained.embed(clouds)
    assert (features.shape, features.dtype) == ((70, 2 * 96), torch.float32)
    assert torch.allclose(trained.model.head(features).double().softmax(1), found, atol=1e-6)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((127, 3)), "needs 128 points per cloud, got 127"),
        (np.zeros((128, 2)), r"shape \(N, 3\) or \(B, N, 3\), got \(128, 2\)"),
        (np.zeros(3), "shape"),
        (np.zeros((0, 128, 3)), "shape"),
        (np.full((128, 3), np.nan), "NaN"),
        (np.full((128, 3), 1e300), "infinite"),
        (np.full((128, 3), "1"), "real numbers"),
        (np.full((128, 3), 1j), "real numbers"),
    ],
)
def test_no_clouds(points: np.ndarray, words: str, finish: Finish) -> None:
    with pytest.raises(ValueError, match=words):
        load_trial(finish("lora").path).predict(points)


def shapes(folder: Path) -> None:
    """Two classes of clouds in files, of 200 points and more, far from the origin."""
    generator = np.random.default_rng(0)
    for kind, stretch in (("flat", (9, 9, 1)), ("long", (1, 1, 9))):
        for split, each in (("train", 8), ("test", 3)):
            (folder / split / kind).mkdir(parents=True)
            for index in range(each):
                points = generator.uniform(0, 1, (200 + 20 * index, 3)) * stretch + 50
                np.save(folder / split / kind / f"{index}.npy", points)


@pytest.mark.parametrize("normalise", [True, False])
def test_files_are_read_as_the_dataset_was(normalise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on imported files, of which nothing is left here: its test files get the trial's own predictions."""
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    shapes(tmp_path / "shapes")
    import_folder(tmp_path / "shapes", name="mine", root=data_root(), points=160, normalise=normalise, up="y")
    train = Train(epochs=1, batch_size=4, warmup_epochs=0, learning_rate=1e-3)
    trial = make_trial(dataset=registry.get("datasets", "mine"), data=Data(points=64, sampling="fps"), train=train)
    writer = claim(trial, tmp_path)
    assert run_trial(trial, writer).status == "done"
    stored = stored_clouds(trial)
    clouds_path("mine", data_root()).unlink()
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "nowhere"))

    trained = load_trial(writer.path)
    assert (trained.classes, trained.trial.dataset.up) == (("flat", "long"), "y")
    with pytest.raises(UserError, match="known from an adapter only"):
        trained.trial.dataset.load("test", data_root())
    found = trained.predict_files(sorted((tmp_path / "shapes" / "test").glob("*/*.npy")))
    probabilities = torch.cat([entry.probabilities for entry in found if entry.probabilities is not None])
    assert torch.equal(probabilities, trained.predict(stored))
    assert np.array_equal(probabilities.argmax(1).numpy(), predictions(writer.path))


def ply(points: np.ndarray) -> str:
    header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in points)
    return header + "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n" + rows


def write_files(folder: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (3, 300, 3))
    np.save(folder / "three.npy", points)
    (folder / "chair.ply").write_text(ply(points[0]))
    (folder / "[red].ply").write_text(ply(points[1, :200]))
    (folder / "few.ply").write_text(ply(points[0, :127]))
    (folder / "bad.off").write_text("OFF\n9 9 9\n")


def test_files_of_many_sizes_and_some_refused(finish: Finish, tmp_path: Path) -> None:
    write_files(tmp_path)
    trained = load_trial(finish("lora").path)
    names = ["few.ply", "three.npy", "bad.off", "[red].ply", "chair.ply", "missing.ply"]
    found = trained.predict_files([tmp_path / name for name in names])
    assert [entry.path.name for entry in found] == names
    sizes = [None if entry.probabilities is None else tuple(entry.probabilities.shape) for entry in found]
    assert sizes == [None, (3, 12), None, (1, 12), (1, 12), None]
    refused = [entry.refused or "" for entry in found]
    assert refused[0] == "holds 127 points, fewer than the 128 needed" and refused[5] == "no such file"
    assert refused[2].startswith("damaged or no .off file") and not refused[1] + refused[3] + refused[4]
    assert trained.predict_files([]) == []


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_predict_in_a_process_of_its_own(finish: Finish, tmp_path: Path) -> None:
    write_files(tmp_path)
    finished = finish("lora")
    place = ["--output", str(finished.path.parent.parent)]
    run = ["-c", "from harness.cli import main; main()", "predict", finished.trial.identity]
    done = python(*run, "[red].ply", "three.npy", "few.ply", *place, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "refused: few.ply: holds 127 points, fewer than the 128 needed\n"
    assert "[red].ply" in done.stdout and "three.npy[2]" in done.stdout and "lora point_mae" in done.stdout


def test_predict_for_programs(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = str(finish("lora").path)

    def predict(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", "predict", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    code, out, _ = predict(path, "chair.ply", "few.ply", "--json", "--top", "2")
    chair, few = json.loads(out)["files"]
    (found,) = load_trial(path).predict_files(["chair.ply"])
    assert found.probabilities is not None
    values, classes = found.probabilities[0].topk(2)
    assert [guess["probability"] for guess in chair["clouds"][0]] == values.tolist()
    assert [guess["class"] for guess in chair["clouds"][0]] == [make_trial().dataset.classes[k] for k in classes]
    assert (code, chair["refused"], few["clouds"], few["file"]) == (1, None, [], "few.ply")
    code, out, _ = predict(path, "three.npy", "--csv", "--top", "99")
    lines = out.splitlines()
    assert (code, lines[0], len(lines)) == (0, "file,cloud,rank,class,probability", 1 + 3 * 12)
    code, out, error = predict(path, "nowhere.ply")
    assert (code, out, error) == (2, "", "error: no file could be read\n- nowhere.ply: no such file\n")
    assert predict(path, "chair.ply", "--json", "--csv")[0] == 2


def test_the_page_runs_as_printed(finish: Finish, tmp_path: Path) -> None:
    """As a script without a main guard, which the processes that read files must not run again."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "use_a_trained_model.md").read_text(), re.DOTALL)
    write_files(tmp_path)
    finished = finish("lora")
    shutil.copytree(finished.path, tmp_path / "results" / "trials" / finished.trial.identity)
    assert '"a212d1"' in code
    (tmp_path / "use.py").write_text(code.replace('"a212d1"', repr(finished.trial.identity[:6])))
    done = python("use.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "refused: few.ply: holds 127 points" in done.stdout
    assert done.stdout.count("chair.ply:") == 1
