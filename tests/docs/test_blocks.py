"""What the documentation shows is true: its commands and Python run, its suites are suites (tests/docs/pages.py)."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from harness import registry
from harness.cli import main
from harness.schema import suite_schema
from harness.suite import load_suite
from tests.docs.pages import ROOT, Block, blocks, name, pages

MARKS = re.compile(r"(runnable(: slow)?|the output|run by \S+|the file \S+)?")
WALKS = {page: blocks(page) for page in pages()}


def checked(block: Block) -> bool:
    return block.mark in {"runnable", "the output"} or block.mark.startswith("the file") or block.language == "yaml"


@pytest.fixture
def printed_plugins(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The packages that the walks print, as if installed (tests/test_plugins.py really installs them)."""
    site = tmp_path_factory.mktemp("site")
    for declared in (ROOT / "tests" / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(declared.read_text())["project"]
        info = site / f"{declared.parent.name}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("".join(lines))
        monkeypatch.syspath_prepend(str(declared.parent))
    monkeypatch.syspath_prepend(str(site))
    for kept in (registry._entries, registry._load):
        kept.cache_clear()
    yield
    monkeypatch.undo()
    for kept in (registry._entries, registry._load):
        kept.cache_clear()


@pytest.mark.parametrize("page", [page for page, found in WALKS.items() if any(map(checked, found))], ids=name)
@pytest.mark.usefixtures("printed_plugins")
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    names: dict[str, Any] = {"__name__": page.stem}
    printed = ""
    for block in filter(checked, WALKS[page]):
        if block.mark.startswith("the file"):
            assert block.text == (ROOT / block.mark.removeprefix("the file ")).read_text(), f"{block} differs"
        if block.mark == "the output":
            assert block.text.strip() in printed, f"{block} is not what is printed: {printed}"
        if block.language == "yaml":
            check_suite(block, tmp_path)
        if block.mark == "runnable":
            run(block, names, monkeypatch)
            printed = capsys.readouterr().out


def check_suite(block: Block, folder: Path) -> None:
    """A whole suite is one to the harness; a part of one is one to the schema, on top of a small suite."""
    given = yaml.safe_load(block.text) or {}
    small = {"format": 1, "name": "small", "seeds": 1, "datasets": ["sweethome12"]}
    small |= {"backbones": {"point_mae": {}}, "methods": {"lora": {}}}
    validator = jsonschema.Draft202012Validator(suite_schema())
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(small | given)]
    assert not problems, f"{block}: {problems}"
    if "format" in given:
        (folder / "suite.yaml").write_text(block.text)
        load_suite(str(folder / "suite.yaml"))


def run(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: Python with the page's names, `harness` as the console script does."""
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), names)
        return
    assert block.language == "bash", f"{block}: neither bash nor python"
    for line in block.text.replace("\\\n", " ").splitlines():
        if not (command := shlex.split(line, comments=True)):
            continue
        assert command[0] == "harness", f"{block}: `{line}` is not for this test"
        monkeypatch.setattr(sys, "argv", command)
        try:
            main()
        except SystemExit as end:
            assert not end.code, f"{block}: `{line}` ends with {end.code}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page, found in WALKS.items() if any(block.mark == "runnable: slow" for block in found)], ids=name
)
def test_slow_walk(page: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in WALKS[page]:
        if block.mark == "runnable: slow":
            interpreter = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
            done = subprocess.run(
                [*interpreter, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"


@pytest.mark.parametrize("page", pages(), ids=name)
def test_marks_are_known_and_true(page: Path) -> None:
    for block in WALKS[page]:
        assert MARKS.fullmatch(block.mark), f"{block}: what is `{block.mark}`?"
        assert block.language, f"{block}: say the language, `text` where it is none"
        if block.mark.startswith("run by"):
            assert page.name in (ROOT / block.mark.removeprefix("run by ")).read_text(), f"{block}: it does not"
    text = page.read_text()
    assert text.count("\n```") == 2 * len(WALKS[page]), f"{page}: a fence is not closed, or is indented"
    assert not re.search(r"\n\n {4}", re.sub(r"```.*?```", "", text, flags=re.DOTALL)), f"{page}: fence the block"


def test_there_is_something_to_run() -> None:
    found = [block for page in WALKS.values() for block in page]
    assert sum(block.mark == "runnable" for block in found) >= 10
    assert sum("format: 1" in block.text for block in found if block.language == "yaml") >= 2
