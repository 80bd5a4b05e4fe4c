"""A headless browser for the app, and what a visitor does with it."""

import contextlib
import os

import pytest


CHROMIUM = "/usr/bin/chromium"
BROWSER_OPTIONS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
TIMEOUT = 60_000


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"the browser test needs {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_OPTIONS))
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, address, width=1280, color_scheme="light"):
    """A visitor's page with the model ready; asks nobody but the app.

    It is the same page for all, one after the other: a new one would read the app's scripts again, for seconds.
    """
    if not browser.contexts:
        browser.new_context().new_page().set_default_timeout(TIMEOUT)
    page, elsewhere = browser.contexts[0].pages[0], []

    def note(request):
        elsewhere.append(request.url)

    page.goto("about:blank")
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=color_scheme)
    page.on("request", note)
    try:
        page.goto(address)
        page.wait_for_selector("#adapt:not([disabled])")
        yield page
    finally:
        page.remove_listener("request", note)
    foreign = [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))]
    assert not foreign, f"the page fetched {foreign[:3]}"


def soon(locator):
    """Playwright's assertions on what the page comes to show: pictures, scores and plots arrive after the headline."""
    from playwright.sync_api import expect

    expect.set_options(timeout=TIMEOUT)
    return expect(locator)


def adapt(page):
    """Presses the button and returns the scores that appear: label -> (before, after), of the best classes of each.

    Nothing after an error.
    """
    shown = "[data-testid=result], [role=alert]"
    page.evaluate(f"document.querySelectorAll('{shown}').forEach(element => element.dataset.old = '')")
    page.click("#adapt")
    page.wait_for_selector(shown.replace("]", "]:not([data-old])"))
    if page.locator("[role=alert]:not([data-old])").count():
        return {}
    for label in ("#before", "#after"):
        page.locator(f"{label} meter").first.wait_for()
    before, after = (
        page.locator(f"{label} meter").evaluate_all("all => all.map(bar => [bar.ariaLabel, bar.value])")
        for label in ("#before", "#after")
    )
    return {label: (dict(before).get(label), dict(after).get(label)) for label in dict([*before, *after])}
