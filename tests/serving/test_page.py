"""The page of `jaxlm serve` in a headless browser: what a person types, sees and is told, at two widths."""

import shutil

import pytest
from fixtures import cli_runs

import jaxlm

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
browser_module = pytest.importorskip("playwright.sync_api")

from fixtures.http_server import served  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
WAIT = 60_000
"""Milliseconds; the first answers compile."""


def test_the_page(workdir):
    """Answers with their best, token probabilities and attention; a refusal; samples; scores. Nothing overflows."""
    with served(jaxlm.load(workdir)) as port, browser_module.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((400, "dark"), (1600, "light")):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            failures = []
            page.on("pageerror", failures.append)
            page.goto(f"http://127.0.0.1:{port}/")
            page.fill("#text", "the green witch")
            page.click("#send")
            page.wait_for_selector("table.map", timeout=WAIT)
            assert len(page.query_selector_all("table:not(.map) tr")) == 1 + 2  # a head and the two best
            assert len(page.query_selector_all("table.map tr:nth-child(2) td")) == len("the green witch") + 1
            page.fill("#text", "<b>a</b>" * 20)
            page.keyboard.press("Control+Enter")
            page.wait_for_selector(".error", timeout=WAIT)
            assert "the model reads 24" in page.inner_text(".error")
            page.click("nav button[value='/v1/completions']")
            page.fill("[name=max_tokens]", "5")
            page.fill("#text", "John")
            page.click("#send")
            page.wait_for_selector("#answers .faint", timeout=WAIT)
            page.click("nav button[value='/v1/score']")
            page.fill("#second", "John")
            page.click("#send")
            page.wait_for_selector(".token", timeout=WAIT)
            assert page.evaluate("document.documentElement.scrollWidth") == width and not failures
        browser.close()
