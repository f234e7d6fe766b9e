"""Every relative link of the documentation leads to a file that is there, and to a heading that is there."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, name, pages, prose

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"(?m)^#+ +(.+?) *$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links(page: Path) -> None:
    broken = []
    for target in LINK.findall(re.sub(r"`[^`]*`", "", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, f"{name(page)}: {broken}"


def test_links_are_found() -> None:
    assert sum(len(LINK.findall(prose(page))) for page in pages()) > 50
