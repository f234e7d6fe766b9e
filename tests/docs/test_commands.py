"""Commands that the documentation names exist, and take the options that it gives them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli import app
from tests.docs.pages import ROOT, blocks, name, pages, prose

COMMAND = typer.main.get_command(app)
PLACEHOLDER = re.compile(r"[A-Z_]+|…")
TEXTS = [*pages(), *(path for path in sorted((ROOT / "docs" / "cluster").iterdir()) if path.suffix != ".md")]


def shown(path: Path) -> list[str]:
    """Every command of a page, in its blocks and in its sentences; of other files, every line that has one."""
    if path.suffix != ".md":
        return re.findall(r"(?m)^(?! *#).*?\b(harness [a-z].*)", path.read_text())
    lines = [line for block in blocks(path) if block.language in {"bash", "console"} for line in joined(block.text)]
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]
    return [line for line in (line.removeprefix("$ ") for line in [*lines, *inline]) if line.startswith("harness ")]


def joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def trouble(line: str) -> str | None:
    """What is wrong with a command line; None when nothing is."""
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError:  # an apostrophe: a sentence, not a command
        return None
    command: Any = COMMAND
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        word = words.pop(0)
        if PLACEHOLDER.fullmatch(word):
            return None
        if word not in command.commands:
            return f"no command `{word}`"
        command = command.commands[word]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    asked = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    unknown = sorted({*asked} - known - {"-h", "--help"})
    return f"no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_commands(path: Path) -> None:
    troubles = [f"{line}: {found}" for line in shown(path) if (found := trouble(line))]
    assert not troubles, "\n".join(troubles)


def test_every_command_is_told_of() -> None:
    text = " ".join(" ".join(shown(path)) for path in TEXTS)
    missing = [found for found in leaves(COMMAND, "harness") if f"{found} " not in f"{text} "]
    assert not missing


def leaves(command: Any, path: str) -> list[str]:
    if not hasattr(command, "commands"):
        return [path]
    return [leaf for word, inner in command.commands.items() for leaf in leaves(inner, f"{path} {word}")]


def test_a_wrong_command_is_noticed() -> None:
    assert trouble("harness run SUITE --adress x") == "no option --adress"
    assert trouble("harness walk SUITE") == "no command `walk`"
    assert trouble("harness data check NAME --json  # fine") is None
