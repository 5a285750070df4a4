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


def word_by_keys(page, number):
    """Go with keys alone to a word of the first sentence's best hypothesis; it, and the whole text's words."""
    stops = 0
    while stops < 2:  # the words of its source are the stop before
        page.keyboard.press("Tab")
        stops += page.evaluate("document.activeElement.getAttribute('role') === 'option'")
    for _ in range(number):
        page.keyboard.press("ArrowRight")
    return page.evaluate("document.activeElement.textContent")


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
    word_by_keys(page, 0)
    assert axe.Axe().run(page).response["violations"] == []
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


def test_what_a_word_looks_at_is_shown_by_keys_and_by_pointing(open_page, server):
    page = open_page()
    text = "One two three four."
    typed_translation(page, text)
    body = {"text": text, "target": "de", "n_best": 3, "alignments": "words"}
    best = post(server.url, body).json()["translations"][0]["sentences"][0]["hypotheses"][0]
    source, target = best["alignment"]["source"], best["alignment"]["target"]
    links = sorted(best["alignment"]["links"], key=lambda link: -link[2])
    names = [name.strip() for name in source]
    shown = [number for number, name in enumerate(target) if name.strip() and name.strip() in best["text"]]
    assert len(shown) > 2

    def told(verb, word, others):
        return (
            f"“{word}” {verb} " + ", ".join(f"“{name}” {100 * share + 1e-9:.0f} %" for name, share in others[:4]) + "."
        )

    second = shown[1]
    wanted = [(names[column], share) for row, column, share in links if row == second]
    assert word_by_keys(page, 1) == target[second].strip()
    assert page.text_content("#looks") == told("looks at", target[second].strip(), wanted)
    of_text = [name for name, _ in wanted if name in text]
    assert sorted(page.locator("#sentences p .seen").all_text_contents()) == sorted(of_text) != []
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == target[shown[-1]].strip()
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.textContent") == target[shown[0]].strip()
    assert page.locator("[aria-selected=true]").count() == 1

    column = links[0][1] if names[links[0][1]] in text else names.index("two")
    place = [number for number, name in enumerate(names) if name in text].index(column)
    page.locator("#sentences p [role=option]").nth(place).hover()
    wanted = [(target[row].strip(), share) for row, found, share in links if found == column]
    assert page.text_content("#looks") == told("is looked at by", names[column], wanted)
    page.mouse.move(0, 0)
    assert f"“{target[shown[0]].strip()}” looks at" in page.text_content("#looks")  # where the focus is


def test_a_model_that_does_not_show_what_it_looks_at_is_shown_without(open_page):
    page = open_page()
    page.evaluate("models[0].alignments = false")
    with page.expect_request("**/v1/translate") as asked:
        typed_translation(page, "One two.")
    assert "alignments" not in asked.value.post_data_json
    assert page.locator("[role=option], #looks:visible, #looks-help:visible").count() == 0


def test_markup_stays_text(open_page):
    """Whatever is typed, and whatever a server answers, is shown and not run."""
    page = open_page()
    evil = "<img src=x onerror=document.title='run'>"
    alignment = {"source": ["<img", " src=x"], "target": [evil, "</s>"], "links": [[0, 0, 0.5], [0, 1, 0.5]]}
    sentence = {"source": evil, "hypotheses": [{"text": evil, "score": -1.0, "is_cut": False, "alignment": alignment}]}
    translation = {"text": evil, "alternatives": [], "counts": {}, "sentences": [sentence]}
    line = json.dumps({"translations": [translation], "model": evil, "engine": evil, "seconds": 0.1}) + "\n"
    page.route("**/v1/translate", lambda route: route.fulfill(body=line, content_type="application/x-ndjson"))
    typed_translation(page, evil)
    assert page.text_content("#result") == evil
    assert evil in page.text_content("#sentences") and evil in page.text_content("#state")
    assert word_by_keys(page, 0) == evil and "“<img” 50 %" in page.text_content("#looks")
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
