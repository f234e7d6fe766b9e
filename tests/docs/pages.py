"""The pages of the documentation, their fenced blocks, and what a comment before a block says of it.

No reader sees these comments, each alone on the line above a block:

    <!-- runnable -->          run in the order of the page, in a folder of the page's own; bash: `harness` commands
    <!-- runnable: slow -->    likewise, by a shell or a Python of its own, in `make test-all`; these alone, in order
    <!-- run by TEST -->       the file of tests that runs it
    <!-- the output -->        what the runnable block before it prints, or a part of that
    <!-- the file PATH -->     the block is that file of the repository

A block of yaml needs none: it is a suite or a part of one, and is checked.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        """Where it is."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Everything that is written for readers."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["mark"] or "",
            match["language"],
            match["text"],
        )
        for match in BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its blocks; lines keep their numbers."""
    return BLOCK.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())


def name(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))
