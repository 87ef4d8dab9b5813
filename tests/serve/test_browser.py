"""The page, in a real browser: paint, watch, cancel, reload, be told what went wrong."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SPEC = spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
chromium = module_from_spec(SPEC)
SPEC.loader.exec_module(chromium)

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="no Chromium here; apt-get install chromium")

SHOTS = os.environ.get("SANA_SCREENSHOTS")  # folder for pictures of the page; see docs/server.md
BUSY = "/step \\d+ of/.test(document.querySelector('figcaption')?.innerText)"
STILL = "document.getAnimations().every((each) => each.playState === 'finished')"
FINE = "document.querySelector('.frame img.fine')"
# Every different picture that the easel shows, in order.
WATCH = """
window.shown = [];
new MutationObserver((changes) => shown.push(...changes.map(({ target }) => target.src)))
  .observe(document.querySelector("#panes"), { subtree: true, attributes: true, attributeFilter: ["src"] });
"""
FORGET = """
new Promise((resolve) => {
  localStorage.clear();
  sessionStorage.clear();
  const request = indexedDB.deleteDatabase("sana");
  // blocked while the page itself has it open: it is deleted when the page is left, before the next one opens it
  request.onsuccess = request.onerror = request.onblocked = () => resolve(0);
})
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    page = chromium.Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(tab, running):
    """The page, freshly opened, with nothing kept from before."""
    tab.look(1280, 860)
    tab.open(running.url)
    tab.evaluate(FORGET)
    tab.open(running.url)
    tab.complaints.clear()
    yield tab
    assert not [each for each in tab.complaints if "Content Security Policy" in each or "Error" in each]
    running.quiet()


def order(page, steps=3, prompt="a red circle above a blue square"):
    page.evaluate(f"(steps => {{ steps.max = {steps}; steps.value = {steps}; }})(document.querySelector('#steps'))")
    page.type("#prompt", prompt)
    page.press("Enter", 13, "\r")


def shoot(page, name):
    if SHOTS:
        page.screenshot(Path(SHOTS) / f"{name}.png")


def test_a_picture_is_painted_and_its_previews_change(page):
    shoot(page, "page-empty")
    page.evaluate(WATCH)
    order(page, steps=60)
    page.wait(FINE)
    shown = page.evaluate("shown")
    previews = {url for url in shown if url.startswith("data:image/png")}
    assert len(previews) >= 2
    assert shown[-1].startswith("blob:")
    assert page.evaluate("document.querySelector('.frame img').naturalWidth") >= 64
    assert "60 steps" in page.text()
    for name, width, height, dark in (
        ("page-light", 1280, 860, False),
        ("page-dark", 1280, 860, True),
        ("page-phone", 390, 844, False),
    ):
        page.look(width, height, dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        page.wait(STILL)
        shoot(page, name)


def test_escape_cancels(page):
    order(page, steps=1000)
    page.wait(BUSY)
    shoot(page, "page-painting")
    page.press("Escape", 27)
    page.wait("/cancelled/.test(document.body.innerText) && !document.querySelector('#paint').disabled")


def test_a_reload_finds_the_painting_under_way_and_the_gallery(page, running):
    order(page, steps=2)
    page.wait(FINE)
    order(page, steps=1000)
    page.wait(BUSY)
    page.open(running.url)
    page.wait(BUSY)
    page.wait("document.querySelectorAll('#gallery li').length === 1")
    assert page.evaluate("document.querySelector('#prompt').value") == "a red circle above a blue square"
    page.evaluate("document.querySelector('#cancel').click()")
    page.wait("/cancelled/.test(document.body.innerText)")


def test_what_went_wrong_is_told(page):
    order(page, prompt="x" * 7000 + "ö" * 900)
    page.wait("!document.querySelector('#error').hidden")
    assert "more than the 8192 bytes" in page.text()
    order(page, steps=1)
    page.wait(FINE)
    assert page.evaluate("document.querySelector('#error').hidden")


def test_again_with_this_seed_fills_the_form(page):
    order(page, steps=4)
    page.wait("document.querySelector('#gallery button')")
    seed = page.evaluate("/seed (\\d+)/.exec(document.body.innerText)[1]")
    page.evaluate("document.querySelector('#gallery button').click()")
    page.wait("document.querySelector('#viewer').open")
    shoot(page, "page-viewer")
    assert f"Seed\n{seed}" in page.text()
    page.evaluate("document.querySelector('#again').click()")
    assert page.evaluate("document.querySelector('#seed').value") == seed
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_the_keyboard_reaches_everything_in_order(page):
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(9):
        page.press("Tab", 9)
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name || 'other'"))
    wanted = [name for name in reached if name != "other"]
    assert wanted[:5] == ["prompt", "size", "steps", "guidance", "seed"]
    assert "paint" in wanted


def test_int8_and_float_are_painted_side_by_side_from_one_seed(tab, serve, int8_bundle):
    server = serve(int8_bundle)
    names = [model["id"] for model in server.get("/v1/capabilities").json()["models"]]
    assert [name.rpartition("-")[2] for name in names] == ["fp32", "int8"]
    tab.look(1280, 860)
    tab.open(server.url)
    tab.evaluate("""document.querySelector('#models input[value="*"]').click()""")
    order(tab, steps=3)
    tab.wait("document.querySelectorAll('.frame img.fine').length === 2")
    shoot(tab, "page-side-by-side")
    told = tab.evaluate("[...document.querySelectorAll('.pane figcaption span:first-child')].map((e) => e.innerText)")
    assert [line.partition(":")[0] for line in told] == names
    assert len({line.partition(": ")[2] for line in told}) == 1
    places = tab.evaluate(PLACES)
    assert places[0]["y"] == places[1]["y"] and places[0]["x"] + places[0]["width"] <= places[1]["x"]
    assert 0 < tab.evaluate(APART) < 8  # of 255: two pictures, and the same scene
    assert tab.evaluate("document.querySelectorAll('#gallery li').length") == 2
    tab.look(390, 844)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(PLACES)[0]["x"] == tab.evaluate(PLACES)[1]["x"]
    order(tab, steps=1000)
    tab.wait(BUSY)
    tab.press("Escape", 27)
    tab.wait("document.querySelectorAll('.pane.stopped').length === 2")


PLACES = "[...document.querySelectorAll('.frame')].map((frame) => frame.getBoundingClientRect().toJSON())"
# The mean distance of the two pictures' colours.
APART = """
(() => {
  const [first, second] = [...document.querySelectorAll(".frame img")].map((image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  });
  return first.reduce((sum, value, i) => sum + Math.abs(value - second[i]), 0) / first.length;
})()
"""


def test_the_key_is_asked_for_once(tab, serve):
    server = serve(key="a long enough key")
    tab.leave()
    tab.call("Page.navigate", url=server.url)
    tab.wait("document.querySelector('#door')?.open")
    tab.type("#key", "a long enough key")
    tab.press("Enter", 13, "\r")
    tab.wait("document.querySelectorAll('#sizes input').length > 0")
