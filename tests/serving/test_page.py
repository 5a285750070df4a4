"""The page in a real browser, without a mouse, at two sizes, looked at by axe-core; where there is a Chromium."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.serving.served import post

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
SIZES = {"desk": (1280, 800), "phone": (360, 640)}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """Makes the page at a size; whatever the browser complains of, or asks another address for, is a failure."""
    complaints, contexts = [], []

    def make(size="desk", scheme="light"):
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(server.url) or complaints.append(request.url))
        page.goto(server.url)
        until(page, "#most", "^4000$")
        return page

    yield make
    for context in contexts:
        context.close()
    expected = "data:", "blob:", "Failed to load resource: the server responded with a status of 400"
    assert [complaint for complaint in complaints if not complaint.startswith(expected)] == []


def until(page, what, pattern):
    """Wait until this is in the text of an element."""
    sync_api.expect(page.locator(what)).to_have_text(re.compile(pattern), timeout=60_000)


def typed_translation(page, text, language="German"):
    """Translate with keys alone, as the order of the focus leads."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "target"
    page.keyboard.type(language)
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.insert_text(text)
    page.keyboard.press("Control+Enter")
    until(page, "#state", "^Done")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_in_the_way_of_anybody(open_page, size, scheme):
    page = open_page(size, scheme)
    assert axe.Axe().run(page).response["violations"] == []
    typed_translation(page, "One two.\nthree")
    found = axe.Axe().run(page).response["violations"]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing to the right
    screen = page.screenshot(full_page=True)
    assert screen.startswith(b"\x89PNG") and len(screen) > 5_000


def test_a_translation_by_keys_alone(open_page, server):
    page = open_page()
    typed_translation(page, "One two.\n\nThree four")
    answer = post(server.url, {"text": "One two.\n\nThree four", "target": "de", "n_best": 3}).json()["translations"][0]
    assert page.text_content("#result") == answer["text"]
    assert page.get_attribute("#result", "lang") == "de"
    rows = page.locator("#sentences tr").all_text_contents()
    wanted = [one for sentence in answer["sentences"] for one in sentence["hypotheses"]]
    assert len(rows) == len(wanted)
    for row, one in zip(rows, wanted, strict=True):
        assert row.startswith(f"{one['score']:.3f}") and one["text"] in row
    state = page.text_content("#state")
    assert "2 sentences by model (pytorch) in " in state


def test_markup_stays_text(open_page):
    """Whatever is typed, and whatever a server answers, is shown and not run."""
    page = open_page()
    evil = "<img src=x onerror=document.title='run'>"
    sentence = {"source": evil, "hypotheses": [{"text": evil, "score": -1.0, "is_cut": False}]}
    translation = {"text": evil, "alternatives": [], "counts": {}, "sentences": [sentence]}
    line = json.dumps({"translations": [translation], "model": evil, "engine": evil, "seconds": 0.1}) + "\n"
    page.route("**/v1/translate", lambda route: route.fulfill(body=line, content_type="application/x-ndjson"))
    typed_translation(page, evil)
    assert page.text_content("#result") == evil
    assert evil in page.text_content("#sentences") and evil in page.text_content("#state")
    assert page.locator("img").count() == 0
    assert page.title() == "Translate"


def test_faults_are_told(open_page):
    page = open_page()
    page.fill("#text", "one")
    page.fill("#target", "Klingon")
    page.keyboard.press("Tab")
    page.focus("#text")
    with page.expect_response("**/v1/translate"):
        page.click("#translate")
    until(page, "#fault", "the nearest is")
    assert page.get_attribute("#fault", "role") == "alert"


def test_a_file_is_dropped_translated_and_saved(open_page, tmp_path):
    page = open_page()
    (tmp_path / "page.html").write_text("<p>one <b>two</b></p>\n")
    page.set_input_files("#file", tmp_path / "page.html")
    sync_api.expect(page.locator("#text")).to_have_value("<p>one <b>two</b></p>\n")
    assert page.input_value("#format") == "html"
    page.fill("#target", "de")
    page.click("#translate")
    until(page, "#state", "^Done")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "page.de.html"
    assert Path(download.value.path()).read_text() == page.text_content("#result")
    (tmp_path / "letter.docx").write_bytes(b"PK")
    page.set_input_files("#file", tmp_path / "letter.docx")
    until(page, "#fault", "[.]docx")
