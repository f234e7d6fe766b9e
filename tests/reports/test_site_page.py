"""The published index in a headless Chromium: loads from a file, asks for nothing, says nothing, is usable by all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.reports.browser import Visit, browser
from tests.reports.folders import HOSTILE, broken, hostile, with_files
from tests.reports.synthetic import synthetic
from tests.reports.test_report_command import run

pytestmark = pytest.mark.slow
__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("site")
    with_files(replace(synthetic(), name="quickstart"), home / "plain")
    with_files(replace(broken(), name="broken"), home / "plain")
    with_files(hostile(), home / "evil")
    found = {}
    for name in ("plain", "evil"):
        title = HOSTILE if name == "evil" else "Results"
        words = ["publish", str(home / name), "-o", str(home / f"{name}_site"), "--format", "md,csv", "--title", title]
        assert run(*words) == 0
        found[name] = home / f"{name}_site" / "index.html"
    return found


def test_it_leads_to_a_report_and_back_without_a_word(browser: Any, sites: dict[str, Path]) -> None:
    found = Visit(browser, sites["plain"])
    assert found.requests == [sites["plain"].as_uri()]
    found.page.get_by_role("link", name="Open the report of quickstart").click()
    assert found.page.url == (sites["plain"].parent / "quickstart" / "leaderboard.html").as_uri()
    assert found.page.locator("#leaderboard").count() == 1
    found.page.get_by_role("link", name="All suites").click()
    assert found.page.locator(".suite").count() == 2
    found.page.get_by_role("button", name="Dark colours").click()
    assert found.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert found.said == [] and all(url.startswith("file:") for url in found.requests)


def test_hostile_names_are_text(browser: Any, sites: dict[str, Path]) -> None:
    found = Visit(browser, sites["evil"])
    assert HOSTILE[:20] in found.page.locator("h1").inner_text()
    assert found.page.locator("img").count() == 0 and found.page.evaluate("document.scripts.length") == 1
    found.page.locator(".links .go").click()
    assert found.page.locator("#leaderboard").count() == 1 and found.said == []


@pytest.mark.parametrize("width", [360, 1360])
@pytest.mark.parametrize("site", ["plain", "evil"])
def test_nothing_runs_out_of_the_page(site: str, width: int, browser: Any, sites: dict[str, Path]) -> None:
    found = Visit(browser, sites[site], viewport={"width": width, "height": 800})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("site", ["plain", "evil"])
def test_accessibility_by_axe(site: str, scheme: str, browser: Any, sites: dict[str, Path]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = Visit(browser, sites[site], color_scheme=scheme, bypass_csp=True)  # the policy keeps axe's own script out
    found.page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    violations = axe.Axe().run(found.page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in violations] == []
