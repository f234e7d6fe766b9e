"""The command line as a user meets it, in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from harness.cli import main


def harness(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from harness.cli import main; main()", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def imported_by(code: str, cwd: Path) -> set[str]:
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stderr.split())


def test_help_is_light(tmp_path: Path) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        code = f"sys.argv = ['harness', *{arguments}]; from harness.cli import main; main()"
        assert not {"torch", "ray", "mlflow", "pandas"} & imported_by(code, tmp_path)


def test_the_package_is_light(tmp_path: Path) -> None:
    assert "torch" not in imported_by("import harness; harness.__version__", tmp_path)
    assert "torch" in imported_by("from harness import load_trial", tmp_path)


def test_plan_needs_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    code = "sys.argv = ['harness', 'plan', 'quickstart']; from harness.cli import main; main()"
    assert not {"ray", "mlflow", "accelerate"} & imported_by(code, tmp_path)


def test_plan_and_validate(tmp_path: Path) -> None:
    plan = json.loads(harness("plan", "quickstart", "--json", cwd=tmp_path).stdout)
    assert sum(not trial["reference"] for trial in plan["trials"]) == 42
    assert plan["missing"] == []
    valid = harness("validate", "quickstart", "paper_table", cwd=tmp_path)
    assert (valid.returncode, valid.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "quickstrat"],
        ["run", "nowhere.yaml"],
        ["validate", "bad.yaml"],
        ["run", "bad.yaml"],
        ["run", "quickstart", "--set", "train.epochz=1"],
        ["run", "quickstart", "--only", "method=lroa"],
        ["run", "quickstart", "--retry", "bad"],
        ["run", "quickstart", "--output", "bad.yaml"],
        ["run", "quickstart", "--no-such-option"],
        ["report", "quickstart"],
        ["status"],
        ["status", "quickstart"],
        ["status", "nowhere.yaml"],
        ["logs", "abc"],
        ["clean"],
        ["show", "method", "lroa"],
        ["show", "method", "lora", "--set", "rnk=3"],
        ["show", "dataset", "sweethome21"],
        ["show", "weights", "nope"],
        ["list", "metods"],
        ["data", "prepare", "sweethome12", "--source", "nowhere"],
        ["data", "prepare", "nope", "--source", "nowhere"],
        ["data", "import", "nowhere", "--name", "x"],
        ["data", "import", "bad.yaml", "--name", "x"],
        ["data", "import", ".", "--name", "x"],
        ["data", "import", ".", "--name", "a/b"],
        ["data", "import", ".", "--name", "sweethome12"],
        ["data", "import", ".", "--name", "x", "--test-fraction", "2"],
        ["data", "import", ".", "--name", "x", "--up", "x"],
        ["data", "import", "."],
        ["pretrain", "--data", "nowhere.npy", "--name", "x"],
        ["init", "bad.yaml"],
        ["predict", "0123abcd", "bad.yaml"],
        ["predict", "bad.yaml", "bad.yaml"],
        ["predict", "0123abcd"],
        ["verify", "nowhere.json"],
        ["verify", "bad.yaml"],
        ["verify", "--device", "tpu"],
        ["verify", "--dtype", "float16"],
    ],
    ids=" ".join,
)
def test_bad_input_is_exit_code_2_without_traceback(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, as starting one takes seconds; an exception that gets out fails the test."""
    (tmp_path / "bad.yaml").write_text("format: 1\nnme: x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr()
    assert stop.value.code == 2, told.out + told.err
    assert "Traceback" not in told.err
    assert len(told.err.strip()) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"], "something was written"


def test_a_mistake_ends_the_real_process_cleanly(tmp_path: Path) -> None:
    done = harness("run", "quickstrat", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "did you mean 'quickstart'?" in done.stderr


def test_what_is_missing_is_said_in_one_message(tmp_path: Path) -> None:
    done = harness("run", "paper_table", cwd=tmp_path, HARNESS_DATA=str(tmp_path / "data"))
    assert done.returncode == 2
    for words in (
        "main_split/training_objectdataset.h5",
        "main_split_nobg",
        "modelnet40_train_8192pts_fps.dat",
        "point_mae_shapenet",
        "github.com/Pang-Yatian",
    ):
        assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_counts_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["show", "method", "lora", "--backbone", "point_mae", "--preset", "base", "--classes", "15"]
    done = harness(*arguments, "--set", "rank=64", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {
        "added": 1179648, "unfrozen": 768, "head": 267535, "trainable": 1447951, "total": 23272975,
    }  # fmt: skip


def test_init_writes_a_suite_that_is_valid(tmp_path: Path) -> None:
    assert harness("init", "mine.yaml", cwd=tmp_path).returncode == 0
    text = (tmp_path / "mine.yaml").read_text()
    assert "name: mine" in text and "harness run mine.yaml" in text and "quickstart" not in text
    assert harness("validate", "mine.yaml", cwd=tmp_path).returncode == 0


def test_own_data_from_folder_to_suite(tmp_path: Path) -> None:
    for index in range(8):
        folder = tmp_path / "shapes" / ("ring" if index % 2 else "[red]rod")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [f"{index} {step % 7} {step % (index + 2)}" for step in range(600)]
        (folder / f"{index}.xyz").write_text("\n".join(rows))
    (folder / "bad.ply").write_text("ply")
    done = harness("data", "import", "shapes", "--name", "mine", "--points", "512", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "[red]rod" in done.stdout and "refused: damaged or no .ply file: ring/bad.ply" in done.stdout
    (tmp_path / "mine.yaml").write_text(done.stdout[done.stdout.index("format: 1") :])
    assert harness("validate", "mine.yaml", cwd=tmp_path).returncode == 0
    assert "mine" in harness("list", "datasets", cwd=tmp_path).stdout.splitlines()


def test_a_broken_command_of_a_plugin_takes_no_other_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import cli, registry
    from harness.errors import UserError

    def get(kind: str, name: str) -> typer.Typer:
        if name == "broken":
            raise UserError("plug-in 'broken' cannot be loaded")
        return typer.Typer()

    added: list[typer.Typer] = []
    monkeypatch.setattr(registry, "names", lambda kind: ["broken", "sound"])
    monkeypatch.setattr(registry, "get", get)
    monkeypatch.setattr(cli.app, "add_typer", added.append)
    cli._add_commands()
    assert len(added) == 1 and capsys.readouterr().err == "warning: plug-in 'broken' cannot be loaded\n"
