"""The page in a real browser, from a file: no request, no error, sorted, filtered, a trial opened, accessible.

Runs where there is a Chromium (tests/reports/browser.py); the copy of axe-core in axe-playwright-python checks
accessibility.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.one_trial import one_trial
from reports import html
from tests.reports.browser import Visit, browser
from tests.reports.folders import HOSTILE, broken, hostile, large, with_clouds, with_files

pytestmark = pytest.mark.slow
__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, suite in (("broken", broken()), ("hostile", hostile()), ("large", large(1_200))):
        folder = tmp_path_factory.mktemp(name)
        log = "epoch 1\n" + (HOSTILE if name == "hostile" else "epoch 2") + "\n"
        found[name] = folder / "leaderboard.html"
        html.write(with_files(suite, folder, log=log) if name != "large" else suite, found[name])
    folder = tmp_path_factory.mktemp("real")
    real = with_clouds(folder)
    found |= {"real": folder / "leaderboard.html", "trial": folder / "trial.html"}
    html.write(real, found["real"])
    html.write_trial(one_trial(real.entries[0].id, folder, items=12), found["trial"])
    return found


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    made: list[Visit] = []

    def go(name: str, address: str = "", **settings: Any) -> Visit:
        path = pages[name]
        made.append(Visit(browser, path, **settings))
        if address:
            made[-1].page.goto(path.as_uri() + address)
        return made[-1]

    yield go
    for one in made:
        one.context.close()


def test_it_loads_from_a_file_without_a_request_or_a_word(visit: Any, pages: dict[str, Path]) -> None:
    found = visit("broken")
    assert found.requests == [pages["broken"].as_uri()] and found.said == []
    assert found.page.locator("#trial-list tbody tr").count() == 25
    assert found.texts("#trials-shown") == ["25 of 50 trials shown."]


def test_the_leaderboard_sorts_and_filters(visit: Any) -> None:
    found = visit("broken")
    header = found.page.locator("#leaderboard th[data-column='1'] button")

    def column() -> list[float]:
        cells = found.page.locator("#leaderboard tbody:first-of-type tr:not(.section) > :nth-child(2)")
        values = cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")
        return [float(value) for value in values if value]

    header.click()
    assert column() == sorted(column(), reverse=True) and len(column()) == 6
    header.click()
    assert column() == sorted(column())
    assert found.page.locator("#leaderboard th[data-column='1']").get_attribute("aria-sort") == "ascending"
    found.page.locator("#filter").fill("lora")
    assert found.texts("#leaderboard tbody tr:not(.section):visible .name")[0].startswith("lora")
    assert found.texts("#sorted") == ["1 of 9 rows."] and found.said == []


def test_trials_are_searched_chosen_and_sorted(visit: Any) -> None:
    found = visit("broken")
    found.page.get_by_label("Status").select_option("oom")
    assert set(found.texts("#trial-list .open")) == {"full"} and found.texts("#trials-shown")[0].startswith("3 of 3")
    found.page.get_by_label("Status").select_option("all")
    found.page.locator("#trials-search").fill("lora seed 1")
    assert found.texts("#trial-list .open") == ["lora", "lora"]
    found.page.locator("#trials-search").fill("")
    found.page.get_by_role("button", name="Show more").click()
    assert found.page.locator("#trial-list tbody tr").count() == 50
    found.page.locator("#trial-list th[data-field='7'] button").click()
    scores = [float(text) for text in found.texts("#trial-list tbody td:nth-child(5)") if text != "–"]
    assert scores == sorted(scores, reverse=True) and len(scores) == 45


def test_a_number_leads_to_its_trials(visit: Any) -> None:
    found = visit("broken")
    found.page.locator("#leaderboard button.drill").first.click()
    assert found.texts("#trials-shown")[0].startswith("3 of 3 trials shown") and found.said == []


def test_a_trial_opens_by_keyboard_and_says_all_that_it_left(visit: Any) -> None:
    found = visit("broken")
    opener = found.page.locator("#trial-list .open").first
    opener.focus()
    found.page.keyboard.press("Enter")
    dialog = found.page.locator("#trial")
    text = dialog.inner_text()
    for words in (
        "Numbers",
        "Learning curves",
        "Predictions by class",
        "Configuration",
        "Environment",
        "End of the log",
    ):
        assert words in text
    assert "epoch 2" in text and "scale_translate" in text and "AMD EPYC" in text
    assert dialog.locator("svg.curve polyline").count() == 1 and dialog.locator("meter").count() == 12
    before = found.texts("#trial-title")
    found.page.get_by_role("button", name="Next", exact=True).click()
    assert found.texts("#trial-title") != before
    found.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert found.page.evaluate("document.activeElement.classList.contains('open')"), "back where it was opened"
    assert found.said == []


def test_an_address_opens_a_trial_and_a_failed_one_shows_its_error(visit: Any) -> None:
    suite = broken()
    failed = next(entry for entry in suite.entries if entry.result is not None and entry.result.status == "oom")
    found = visit("broken", f"#trial-{failed.id}")
    assert "CUDA out of memory" in found.page.locator("#trial").inner_text()


def test_hostile_text_is_text_everywhere(visit: Any) -> None:
    found = visit("hostile")
    found.page.get_by_label("Status").select_option("oom")
    found.page.locator("#trial-list .open").first.click()
    assert "onerror=alert(1)" in found.page.locator("#trial").inner_text()
    found.page.keyboard.press("Escape")
    found.page.get_by_label("Status").select_option("done")
    found.page.locator("#trial-list .open").first.click()
    assert "onerror=alert(1)" in found.page.locator("#trial").inner_text()
    assert found.page.locator("img").count() == 0 and found.page.evaluate("document.scripts.length") == 2
    assert found.said == [] and len(found.requests) == 1


def test_pictures_are_chosen_and_have_tooltips(visit: Any) -> None:
    found = visit("broken")
    assert found.page.locator(".picture:visible").count() == 1
    found.page.get_by_role("button", name="Learning curves").click()
    assert found.page.locator("#p-curves").is_visible() and found.page.locator(".picture:visible").count() == 1
    found.page.locator("#p-curves .series text").first.hover()
    assert "epochs, mean of" in found.page.locator(".tip").inner_text()


def test_dark_is_remembered_by_the_button_and_the_address(visit: Any) -> None:
    found = visit("broken", color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = found.page.evaluate(colour)
    found.page.get_by_role("button", name="Dark colours").click()
    dark = found.page.evaluate(colour)
    assert dark != light
    assert visit("broken", "#dark", color_scheme="light").page.evaluate(colour) == dark
    assert visit("broken", color_scheme="dark").page.evaluate(colour) == dark


@pytest.mark.parametrize("width", [390, 1360])
def test_nothing_runs_out_of_the_page(width: int, visit: Any) -> None:
    found = visit("broken", viewport={"width": width, "height": 800})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_a_script_the_numbers_are_there(visit: Any) -> None:
    found = visit("broken", java_script_enabled=False)
    assert len(found.texts("#leaderboard tbody tr:not(.section)")) == 9
    assert found.page.locator(".picture:visible").count() >= 3


def test_print_has_no_controls_and_all_pictures(visit: Any) -> None:
    found = visit("broken")
    found.page.emulate_media(media="print")
    assert not found.page.locator("#filter").is_visible() and not found.page.locator("#theme").is_visible()
    assert found.page.locator(".picture:visible").count() >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("opened", [False, True], ids=["page", "trial"])
def test_accessibility_by_axe(scheme: str, opened: bool, visit: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = visit("broken", color_scheme=scheme, bypass_csp=True)  # the page's policy keeps axe's own script out
    found.page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    if opened:
        found.page.locator("#trial-list .open").first.click()
    violations = axe.Axe().run(found.page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in violations] == []


def test_many_trials_keep_their_details_in_pages_beside_it(visit: Any, pages: dict[str, Path]) -> None:
    beside = sorted((pages["large"].parent / "leaderboard_trials").iterdir())
    assert [path.name for path in beside] == [f"{k:03}.html" for k in range(5)]
    found = visit("large")
    found.page.locator("#trials-search").fill("lora seed 170")
    found.page.locator("#trial-list .open").first.click()
    found.page.wait_for_url("**/leaderboard_trials/*.html*")
    assert found.texts("#trial-title") == ["lora on sweethome12, seed 170"] and found.said == []
    found.page.keyboard.press("Escape")
    found.page.get_by_role("link", name="Back to the leaderboard").click()
    assert found.page.locator("#leaderboard").count() == 1


BLANK = 600
"""Characters of a canvas without a drawing, as a picture in base64, and more."""


def drawings(found: Visit) -> list[str]:
    """All canvases as they are, each with something on it."""
    found.page.evaluate("new Promise((ready) => requestAnimationFrame(() => requestAnimationFrame(ready)))")
    script = "canvases => canvases.map((canvas) => canvas.toDataURL())"
    values: list[str] = found.page.locator("canvas").evaluate_all(script)
    assert all(len(value) > BLANK for value in values)
    return values


def test_clouds_that_a_trial_got_wrong_are_drawn_and_turn(visit: Any) -> None:
    found = visit("real")
    found.page.locator("#trial-list .open").first.click()
    assert found.page.locator("#trial canvas").count() == 6 and "6 of 30 wrong items" in found.page.inner_text("#trial")
    first = drawings(found)
    found.page.get_by_role("button", name="Turn left").click()
    turned = drawings(found)
    assert all(a != b for a, b in zip(first, turned, strict=True)), "all turn together"
    found.page.locator(".clouds").focus()
    found.page.keyboard.press("ArrowRight")
    assert drawings(found) == first
    box = found.page.locator("#trial canvas").first.bounding_box()
    found.page.mouse.move(box["x"] + 60, box["y"] + 60)
    found.page.mouse.down()
    found.page.mouse.move(box["x"] + 100, box["y"] + 50)
    found.page.mouse.up()
    assert drawings(found) != first
    found.page.locator(".clouds").focus()
    found.page.keyboard.press("Home")
    assert drawings(found) == first and found.said == [] and len(found.requests) == 1


def test_a_page_of_one_trial_loads_from_a_file_with_its_clouds(visit: Any, pages: dict[str, Path]) -> None:
    found = visit("trial", viewport={"width": 390, "height": 800})
    assert found.requests == [pages["trial"].as_uri()] and found.said == []
    assert len(set(drawings(found))) == 12
    for words in ("Numbers", "Learning curves", "What it got wrong", "Configuration"):
        assert words in found.page.inner_text("main")
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["real", "trial"])
def test_clouds_are_accessible_by_axe(scheme: str, name: str, visit: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = visit(name, color_scheme=scheme, bypass_csp=True)
    if name == "real":
        found.page.locator("#trial-list .open").first.click()
    violations = axe.Axe().run(found.page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in violations] == []
