"""The site of the documentation builds without a warning, whole, and asks no other host for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra `docs` is not installed"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it. Strict: a page that the menu leaves out, a broken link or anchor, or a name that the
    reference asks for and the code does not have, is an error."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Asked(HTMLParser):
    """Addresses that a browser fetches to show a page; where its links lead is another matter."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value for key in ("src", "data", "srcset") if (value := given.get(key))]
        if tag == "link" and given.get("rel") not in {"next", "prev"}:
            self.addresses.append(given.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_page_is_there_and_no_other_host(site: Path) -> None:
    docs = ROOT / "docs"
    expected = {page.relative_to(docs).with_suffix(".html") for page in pages() if page.is_relative_to(docs)}
    found = {path.relative_to(site): path.read_text() for path in site.rglob("*.html")}
    assert expected | {Path("index.html"), Path("changelog.html")} <= found.keys()
    for path, text in found.items():
        asked = Asked()
        asked.feed(text)
        foreign = [address for address in asked.addresses if re.match(r"(https?:)?//", address)]
        assert not foreign, f"{path}: {foreign}"
    assert not any("@import" in sheet.read_text() for sheet in site.rglob("*.css"))


def test_the_reference_has_what_it_names(site: Path) -> None:
    for page, name in (("method", "before_training"), ("suite", "label_smoothing"), ("result", "class_accuracy")):
        asked = Asked()
        asked.feed((site / "api" / f"{page}.html").read_text())
        assert name in asked.text


def test_the_front_page_is_the_readme(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert (
        'src="images/overview.svg"' in text
        and 'href="suite.html"' in text
        and "docs/" not in re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)
    )
