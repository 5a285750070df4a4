"""LibreTranslate's API, asked by its own client and as its documents tell."""

import urllib.error

import httpx2
import pytest
from libretranslatepy import LibreTranslateAPI

import deltalm_ds
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.serving.limits import ApiKeys
from tests.serving.served import echo_service, get, running


@pytest.fixture(scope="module")
def translator(directory):
    return deltalm_ds.Translator(directory / "model", threads=1, options=SearchOptions(beam=2))


def ask(url, **body):
    return httpx2.post(f"{url}/translate", json=body, timeout=60)


def test_its_own_client(server, translator):
    client = LibreTranslateAPI(server.url)
    assert client.translate("One two. Größe & three", "en", "de") == translator("One two. Größe & three", "de", "en")
    assert {"code": "de", "name": "German", "targets": ["en", "de", "zh_Hans"]} in client.languages()
    (best, *_) = client.detect("Guten Morgen, wie geht es Ihnen heute?")
    assert best["language"] == "de" and best["confidence"] > 50
    (short, *_) = client.detect("Saturday, November 21")  # more likely in a language that this server does not have
    assert short["language"] == "en" and short["confidence"] < 50
    assert client.detect("你好，世界")[0]["language"] == "zh_Hans"  # as in /languages, whose codes clients go on with
    with pytest.raises(urllib.error.HTTPError, match="400"):
        client.translate("one", "en", "fr")


def test_lists_alternatives_and_html(server, translator):
    texts = ["One two.", "three"]
    answer = ask(server.url, q=texts, source="en", target="de", alternatives=2).json()
    assert answer["translatedText"] == translator(texts, "de", "en")
    for first, others in zip(answer["translatedText"], answer["alternatives"], strict=True):
        assert len(others) <= 2 and len({first, *others}) == 1 + len(others)
    assert any(answer["alternatives"])
    page = "<p>one <i>two</i></p>"
    answer = ask(server.url, q=page, source="en", target="de", format="html").json()
    assert answer == {"translatedText": translator(page, "de", "en", format="html")}


def test_a_source_of_auto_is_told(server):
    texts = ["Guten Morgen, wie geht es Ihnen heute?", "Good morning, how are you today?", "12"]
    answer = ask(server.url, q=texts, source="auto", target="de").json()
    assert [found["language"] for found in answer["detectedLanguage"][:2]] == ["de", "en"]
    assert len(answer["detectedLanguage"]) == 3
    alone = ask(server.url, q=texts[0], source="auto", target="de").json()
    assert alone["detectedLanguage"] == answer["detectedLanguage"][0]


def test_forms(server):
    fields = "q=one&q=two&source=en&target=de"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = httpx2.post(f"{server.url}/translate", content=fields, headers=headers, timeout=60).json()
    assert answer == ask(server.url, q=["one", "two"], source="en", target="de").json()
    for bad in ("q=%ff&source=en&target=de", "q=one", b"q=\xff", "&".join(["q=x"] * 3_000)):
        response = httpx2.post(f"{server.url}/translate", content=bad, headers=headers, timeout=60)
        assert response.status_code == 400 and response.json()["error"]


def test_keys_come_as_clients_send_them(directory, tmp_path):
    (tmp_path / "keys").write_text("# of the house\nopen-sesame\nBär\n")
    with echo_service(directory, keys=ApiKeys(tmp_path / "keys")) as (service, _), running(service) as url:
        body = {"q": "one", "source": "en", "target": "de"}
        assert ask(url, **body).status_code == 401
        assert ask(url, **body, api_key="open").status_code == 403
        broken = b'{"q": "one", "source": "en", "target": "de", "api_key": "\\ud83d"}'
        headers = {"Content-Type": "application/json"}
        assert httpx2.post(f"{url}/translate", content=broken, headers=headers, timeout=60).status_code == 400
        assert ask(url, **body, api_key="Bär").status_code == 200
        assert LibreTranslateAPI(url, "open-sesame").translate("one", "en", "de")
        for path in ("v1/models", "metrics"):
            assert get(f"{url}/{path}").status_code == 401
            headers = {"Authorization": "Bearer open-sesame"}
            assert get(f"{url}/{path}", headers=headers).status_code == 200
        for path in ("", "health", "languages"):
            assert get(f"{url}/{path}").status_code == 200
