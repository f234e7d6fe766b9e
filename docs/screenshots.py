"""Pictures for these docs, in docs/images.

    python docs/screenshots.py results/quickstart/report/leaderboard.html     the report: light, dark, phone, a trial
    python docs/screenshots.py site/index.html                                a published site: light, dark, phone
    python docs/screenshots.py trial.html                                     the clouds that a trial got wrong
    python docs/screenshots.py results/mlflow.db quickstart                   MLflow's pages of that suite

Needs the package playwright and a Chromium on the PATH; MLflow is served on a port of this machine while it is asked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).with_name("images")
DESKTOP, PHONE = {"width": 1360, "height": 1180}, {"width": 390, "height": 844}
WIDE = {"width": 1360, "height": 820}
PATIENCE = 90_000
"""Milliseconds for MLflow to start and to fill a page."""


def main(arguments: list[str]) -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium on the PATH")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if Path(arguments[0]).suffix != ".html":
            with _served(Path(arguments[0])) as address:
                _mlflow(browser, address, arguments[1])
        elif '<main id="trial-alone">' in Path(arguments[0]).read_text():
            _trial(browser, Path(arguments[0]))
        else:
            _report(browser, Path(arguments[0]))
        browser.close()


def _report(browser: Browser, report: Path) -> None:
    for name, scheme, size in (("light", "light", DESKTOP), ("dark", "dark", DESKTOP), ("phone", "light", PHONE)):
        page = browser.new_context(color_scheme=scheme, viewport=size, reduced_motion="reduce").new_page()
        page.goto(report.resolve().as_uri())
        kind = "site" if report.name == "index.html" else "report"
        page.screenshot(path=IMAGES / f"{kind}_{name}.png")
        if (kind, name) == ("report", "light"):
            _parts(page)


def _parts(page: Page) -> None:
    page.get_by_role("button", name="Learning curves").click()
    page.locator("section[aria-labelledby=h-pictures]").screenshot(path=IMAGES / "report_curves.png")
    page.locator("#trial-list .open").first.click()
    page.screenshot(path=IMAGES / "report_trial.png")


def _trial(browser: Browser, file: Path) -> None:
    page = browser.new_context(viewport=WIDE, reduced_motion="reduce").new_page()
    page.goto(file.resolve().as_uri())
    page.wait_for_timeout(600)
    page.locator("main section", has=page.locator(".clouds")).screenshot(path=IMAGES / "trial_clouds.png")


@contextlib.contextmanager
def _served(database: Path) -> Iterator[str]:
    """MLflow on a free port of this machine; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database.resolve()}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    server = subprocess.Popen(
        command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:  # its own workers keep it waiting
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"{address} does not answer")
            time.sleep(0.5)


def _mlflow(browser: Browser, address: str, suite: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(suite).experiment_id
    parent = client.search_runs([experiment], f"tags.`harness.suite` = '{suite}'")[0].info.run_id
    home, training = f"{address}/#/experiments/{experiment}", "workflowType=machine_learning"
    page = browser.new_context(viewport=WIDE, reduced_motion="reduce").new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{home}/runs/{parent}?{training}")
    page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_role("button", name="Expand description").click()
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / "mlflow_suite.png")
    page.goto(f"{home}/runs?{training}&compareRunsMode=CHART&orderByKey=metrics.%60metrics%2Faccuracy%60")
    page.set_viewport_size(DESKTOP)
    page.get_by_placeholder("Search metric charts").fill("train/loss|s/accuracy")
    page.wait_for_timeout(6000)
    page.screenshot(path=IMAGES / "mlflow_charts.png")


if __name__ == "__main__":
    main(sys.argv[1:])
