"""The built pages in a real browser: errors, requests, mathematics, explorers, phone width, light and dark."""

import os
import shutil

import pytest

from tools.notebooks import chapters

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SLUGS = [path.stem for path in chapters()]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"),
    reason="no Chromium on this machine (Debian and Ubuntu: apt-get install chromium)",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """A function that opens a page of the book and collects what went wrong on it."""
    contexts = []

    def open_page(name, viewport=DESKTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.wrong = []
        page.on("console", lambda m: page.wrong.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(f"error: {error}"))
        page.on("requestfailed", lambda request: page.wrong.append(f"failed: {request.url}"))
        page.on(
            "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else page.wrong.append(r.url)
        )
        page.goto(address + name)
        page.wait_for_load_state("networkidle")
        page.evaluate("window.MathJax?.startup?.promise")
        return page

    yield open_page
    for context in contexts:
        context.close()


def pages(site):
    return sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone-dark", "desktop-light"]
)
def test_every_page_loads_cleanly_renders_its_mathematics_and_fits_the_width(site, open_page, viewport, scheme):
    for name in pages(site):
        page = open_page(name, viewport, scheme)
        assert page.wrong == [], name
        raw = page.evaluate("document.querySelectorAll('.math:not(:has(mjx-container))').length")
        assert raw == 0, f"{name}: {raw} formulas stay raw"
        assert page.evaluate("document.querySelectorAll('mjx-merror').length") == 0, f"{name}: a formula has an error"
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], f"{name} scrolls sideways"
        theme = page.evaluate("document.documentElement.dataset.theme")
        assert theme == scheme, name
        page.context.close()


@pytest.mark.parametrize("slug", SLUGS)
def test_a_chapter_has_rendered_mathematics_and_named_sliders(open_page, slug):
    page = open_page(f"chapters/{slug}.html")
    page.wait_for_selector(".noUi-handle")
    assert page.locator("mjx-container").count() > 20
    for handle in page.locator(".noUi-handle").all():
        assert handle.get_attribute("aria-label")
        assert handle.get_attribute("aria-valuetext")
        assert handle.get_attribute("role") == "slider"


def shown(page):
    """Descriptions of the frames that are visible, in the order of the page."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.symlearn-frame')].filter((f) => f.offsetParent !== null)
            .map((f) => f.querySelector('[aria-label], [alt]')).map((p) => p.getAttribute('aria-label') ?? p.alt)"""
    )


def pictures(page):
    return page.evaluate(
        """() => [...document.querySelectorAll('.symlearn-frame')].filter((f) => f.offsetParent !== null)
            .map((f) => f.innerHTML)"""
    )


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("slug", SLUGS)
def test_an_explorer_answers_to_the_mouse_and_to_the_keyboard(open_page, slug, viewport):
    page = open_page(f"chapters/{slug}.html", viewport)
    page.wait_for_selector(".noUi-handle")
    for handle in page.locator(".noUi-handle").all():
        before, picture = shown(page), pictures(page)
        value = handle.get_attribute("aria-valuetext")
        handle.focus()
        at_end = float(handle.get_attribute("aria-valuenow")) >= float(handle.get_attribute("aria-valuemax"))
        page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
        page.wait_for_function("before => document.activeElement.getAttribute('aria-valuetext') !== before", arg=value)
        assert shown(page) != before, "the arrow keys change nothing"
        assert pictures(page) != picture, "the arrow keys change the words but not the picture"

        before = shown(page)
        handle.scroll_into_view_if_needed()
        box, track = (
            handle.bounding_box(),
            handle.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]").bounding_box(),
        )
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        middle = track["x"] + track["width"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(track["x"] + track["width"] if x < middle else track["x"], y, steps=8)
        page.mouse.up()
        page.wait_for_timeout(100)
        assert shown(page) != before, "the mouse changes nothing"


@pytest.mark.parametrize("slug", SLUGS)
def test_figures_follow_the_dark_page(open_page, slug):
    page = open_page(f"chapters/{slug}.html", scheme="dark")
    page.wait_for_selector(".symlearn-frame")
    filters = page.evaluate(
        """() => [...document.querySelectorAll('.cell_output img, .symlearn-frame > *')]
            .map((picture) => getComputedStyle(picture).filter)"""
    )
    assert filters
    assert all("invert" in value for value in filters)
