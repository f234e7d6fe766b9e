"""Pictures of a report for these docs: `python docs/screenshots.py results/quickstart/report/leaderboard.html`.

Light and dark, desktop and phone, and a trial. Of the `index.html` of a published site: light, dark and phone.
Needs the package playwright and a Chromium on the PATH.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).with_name("images")
DESKTOP, PHONE = {"width": 1360, "height": 1180}, {"width": 390, "height": 844}


def main(report: Path) -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium on the PATH")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, scheme, size in (("light", "light", DESKTOP), ("dark", "dark", DESKTOP), ("phone", "light", PHONE)):
            page = browser.new_context(color_scheme=scheme, viewport=size, reduced_motion="reduce").new_page()
            page.goto(report.resolve().as_uri())
            kind = "site" if report.name == "index.html" else "report"
            page.screenshot(path=IMAGES / f"{kind}_{name}.png")
            if (kind, name) == ("report", "light"):
                _parts(page)
        browser.close()


def _parts(page: Page) -> None:
    page.get_by_role("button", name="Learning curves").click()
    page.locator("section[aria-labelledby=h-pictures]").screenshot(path=IMAGES / "report_curves.png")
    page.locator("#trial-list .open").first.click()
    page.screenshot(path=IMAGES / "report_trial.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
