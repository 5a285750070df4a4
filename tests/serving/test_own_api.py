"""Our own API, asked over the network, beside the same model called in this process."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

import deltalm_ds
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.serving.limits import ApiKeys, Limits
from deltalm_ds.serving.service import Service
from tests.cli.command import must
from tests.serving.served import get, post, running, until

TEXTS = ["One two three. Four five!\n\nSix seven.", "", "eight", "one.\n - two\n - three", "Größe ▁ 中文。one"]
PAGE = "<h1>One two</h1>\n<p>three <b>four</b> five. Six &amp; seven.<br>\n  eight</p><script>nine()</script>\n"


@pytest.fixture(scope="module")
def translator(directory):
    return deltalm_ds.Translator(directory / "model", threads=1, options=SearchOptions(beam=2))


@pytest.mark.parametrize("target", ["de", "en", "zh_Hans"])
def test_texts_are_translated_as_in_python(server, translator, target):
    answer = post(server.url, {"texts": TEXTS, "target": target}).json()
    assert [one["text"] for one in answer["translations"]] == translator(TEXTS, target)
    assert (answer["model"], answer["engine"]) == ("model", "pytorch")
    assert answer["seconds"] > 0
    assert [post(server.url, {"text": text, "target": target}).json()["translations"] for text in TEXTS] == [
        [one] for one in answer["translations"]
    ]


@pytest.mark.parametrize(("format", "text"), [("html", PAGE), ("markdown", "# one\n\n*two* three `four`\n")])
def test_documents_are_translated_as_in_python(server, translator, format, text):
    answer = post(server.url, {"text": text, "target": "de", "format": format, "source": "en"}).json()
    assert answer["translations"][0]["text"] == translator(text, "de", "en", format=format)


def test_hypotheses_are_those_of_the_command_line(server, directory):
    lines = ["One two.", "four"]  # each in one piece
    options = "--target-lang", "de", "--beam", 3, "--n-best", 3, "--threads", 1, "--json"
    printed = must("translate", directory / "model", *options, stdin="\n".join(lines).encode())
    wanted = [json.loads(row) for row in printed.splitlines()]
    answer = post(server.url, {"texts": lines, "target": "de", "n_best": 3, "beam": 3}).json()
    for line, row, translation in zip(lines, wanted, answer["translations"], strict=True):
        (sentence,) = translation["sentences"]
        assert sentence["source"] == line
        texts = [one["text"] for one in sentence["hypotheses"]]
        assert texts == [one["text"] for one in row["hypotheses"]]
        assert [one["score"] for one in sentence["hypotheses"]] == pytest.approx(
            [one["score"] for one in row["hypotheses"]], abs=1e-5
        )
        shown = [text.strip() for text in texts if text.strip()] or [line]  # what shows nothing is no translation
        assert {translation["text"], *translation["alternatives"]} == set(shown)
        assert translation["text"] == shown[0]


def test_a_batch_gives_what_each_gives_alone(directory):
    """Requests of all kinds at once, and then one by one, by a server that remembers nothing."""
    words = ["one two", "Three.", "four five six seven. Eight", "nine ten one two three four five six"]
    asked = [
        {"text": " ".join([text] * times), "target": target, "beam": beam, "n_best": n_best}
        for text, times, target, (beam, n_best) in product(words, (1, 3), ("de", "en"), ((1, 1), (2, 2)))
    ]
    service = Service([str(directory / "model")], Limits(), ApiKeys(None), {"threads": 1}, cache_size=0)
    (model,) = service.models
    free = threading.Event()
    model._batcher.call(lambda engine: free.wait(60))  # until all of them wait
    with running(service) as url:
        with ThreadPoolExecutor(len(asked)) as threads:
            answers = threads.map(lambda body: post(url, body).json()["translations"], asked)
            until(lambda: model.num_waiting >= len(asked))
            free.set()
            together = list(answers)
        metrics = get(f"{url}/metrics").text
        alone = [post(url, body).json()["translations"] for body in asked]
    service.close()
    figures = (metrics.split(f"deltalm_batch_sentences_{what}{{")[1].split()[1] for what in ("count", "sum"))
    count, total = map(float, figures)
    assert total > 2 * count  # they did share batches
    assert [texts(found) for found in together] == [texts(found) for found in alone]
    assert scores(together) == pytest.approx(scores(alone), abs=1e-5)


def texts(found):
    hypotheses = [[one["text"] for one in sentence["hypotheses"]] for one in found for sentence in one["sentences"]]
    return [(one["text"], one["alternatives"]) for one in found], hypotheses


def scores(found):
    return [
        one["score"]
        for translations in found
        for translation in translations
        for sentence in translation["sentences"]
        for one in sentence["hypotheses"]
    ]


def test_a_stream_ends_with_the_whole_answer(server):
    body = {"texts": TEXTS, "target": "de", "n_best": 2}
    whole = post(server.url, body).json()["translations"]
    response = post(server.url, body | {"stream": True})
    assert response.headers["content-type"] == "application/x-ndjson"
    *sentences, last = [json.loads(line) for line in response.text.splitlines()]
    assert last["translations"] == whole
    heard = [[one["sentence"] for one in sentences if one["text"] == number] for number in range(len(TEXTS))]
    assert heard == [translation["sentences"] for translation in whole]


@pytest.mark.parametrize("unit", ["words", "pieces"])
def test_alignments_are_those_of_python(server, translator, unit):
    body = {"texts": ["One two three. Größe!", "four", "one"], "target": "de", "n_best": 2, "alignments": unit}
    answer = post(server.url, body).json()
    *_, last = post(server.url, body | {"stream": True}).text.splitlines()
    assert json.loads(last)["translations"] == answer["translations"]
    for sentence in (sentence for one in answer["translations"] for sentence in one["sentences"]):
        for hypothesis in sentence["hypotheses"]:
            found = hypothesis["alignment"]
            weights = np.zeros((len(found["target"]), len(found["source"])))
            for row, column, weight in found["links"]:
                weights[row, column] = weight
            wanted = translator.align(sentence["source"], hypothesis["text"], "de", unit)
            if "".join(found["target"]) == "".join(wanted.target):  # else the text has other pieces than the output
                assert (tuple(found["source"]), tuple(found["target"])) == (wanted.source, wanted.target)
                assert weights == pytest.approx(np.where(wanted.weights >= 0.05, wanted.weights, 0), abs=1e-3)
            assert len(found["target"]) == 1 or weights.sum() > 0


def test_what_can_be_asked_for_is_told(server):
    found = get(f"{server.url}/v1/models").json()
    (model,) = found["models"]
    assert (model["name"], model["engine"], model["alignments"]) == ("model", "pytorch", True)
    assert model["languages"][1:] == [
        {"code": "de", "name": "German"},
        {"code": "zh_Hans", "name": "Chinese (Simplified)"},
    ]
    assert found["limits"] == {"characters": 4_000, "n_best": 16, "beam": 2}
    assert post(server.url, {"text": "one", "target": "cmn"}).status_code == 200  # another spelling of Chinese
    assert get(f"{server.url}/health").json() == {"status": "ok"}


FAULTS = [
    ({"text": "one", "target": "fr"}, 400, "the nearest is"),
    ({"text": "one", "target": "german"}, 400, "the nearest is"),
    ({"text": "one"}, 400, "Name the target: en, de, zh_Hans."),
    ({"text": "one", "target": "de", "model": "modl"}, 400, "the nearest is 'model'"),
    ({"text": "one", "texts": ["two"], "target": "de"}, 400, "Send either text or texts."),
    ({"target": "de"}, 400, "Send either text or texts."),
    ({"text": "one", "tarket": "de"}, 400, "There is no field 'tarket': the nearest is 'target'."),
    ({"text": "one", "target": "de", "n_best": 17}, 400, "n_best: "),
    ({"text": "one", "target": "de", "beam": 0}, 400, "beam: "),
    ({"text": "one", "target": "de", "format": "docx"}, 400, "format: "),
    ({"text": "one", "target": "de", "source": "x y"}, 400, "is not a language code"),
    ({"text": "a\0b", "target": "de"}, 400, "NUL"),
    ({"text": "one", "target": "de", "alignments": "letters"}, 400, "alignments: "),
    ({"text": "one", "target": "de" + "-1abc" * 20}, 400, "target: "),
    ({"text": "x" * 2_001, "target": "de", "n_best": 2, "alignments": "words"}, 413, "as many characters as 4002"),
    ({"text": ["one"], "target": "de"}, 400, "text: "),
    ({"text": "x" * 4_001, "target": "de"}, 413, "4001 characters"),
    ({"texts": ["x"] * 1_001, "target": "de"}, 413, "1001 texts"),
    ([], 400, ""),
    ("text", 400, ""),
]


@pytest.mark.parametrize(("body", "status", "words"), FAULTS, ids=[str(body)[:40] for body, _, _ in FAULTS])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_one_sentence(server, body, status, words, stream):
    response = post(server.url, body | {"stream": True} if stream and isinstance(body, dict) else body)
    assert response.status_code == status
    found = response.json()
    assert words in found["error"] and found["error"].endswith(".")
    assert found["code"] == {400: "bad_request", 413: "too_large"}[status]


def test_every_answer_has_the_headers_of_a_page_that_runs_nothing(server):
    for path in ("/", "/health", "/v1/models", "/nothing", "/v1/translate", "/metrics"):
        headers = get(server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers


def test_another_name_of_this_address_is_refused(server):
    """As a page would have it whose name leads here."""
    for name, status in {
        "evil.example": 400,
        "localhost:1": 200,
        "127.0.0.1": 200,
        "localhost.evil.example": 400,
    }.items():
        response = get(f"{server.url}/health", headers={"Host": name})
        assert response.status_code == status, name
