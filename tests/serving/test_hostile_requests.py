"""Requests that nobody sends in good faith, made by chance: the server answers, or hangs up, and goes on."""

import json
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from libretranslatepy import LibreTranslateAPI

from deltalm_ds.generation.documents import FORMATS
from deltalm_ds.generation.documents.translate import TranslatedDocument
from deltalm_ds.serving import page
from tests.serving.served import Process, get, post

PATHS = ["/", "/v1/translate", "/v1/models", "/translate", "/detect", "/languages", "/metrics", "/health"]
TRICKS = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/translate/", "/%00", "/\\..\\", "/é"]
TRICKS += ["/page.html", "/static/../app.py", "/?q=<script>", "http://evil.example/", "*", "/%ff%fe", "/x%0d%0aX-A:b"]
TRICKS += ["/" + "a" * 9_000]
TEXTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202e\u200b\ufeff",
    "\x01\x1b[2J",
    "&lt;b&gt;",
    "\0",
]
TEXTS += ["𝔘" * 30, "é" * 200, "one " * 300, "." * 3_000, "[" * 3_000, "<" * 3_000, "<!" * 999, "<![CDATA[", "*_" * 999]
TEXTS += [
    "1\n00:00:01,000 --> 00:00:02,000\none",
    "WEBVTT\n\n",
    "{{" * 999,
    "http://" * 400,
    "a@" * 999,
    "\r\n" * 1_500,
]
VALUES = [
    None,
    True,
    -1,
    10**30,
    1e308,
    [],
    {},
    "",
    "auto",
    "xx",
    "zh",
    "../model",
    "model",
    "text",
    "html",
    "ÿ",
    [["one"]],
]
FIELDS = ["text", "texts", "q", "target", "source", "model", "format", "n_best", "beam", "stream", "alternatives"]
FIELDS += ["api_key", "__proto__", "a" * 200]
UPGRADE = ["Connection: Upgrade", "Upgrade: websocket"]


def value(rng: random.Random):
    code = f"en-{rng.randrange(10**4):04}-{rng.randrange(10**4):04}"  # by the grammar, and never the same again
    return rng.choice([*VALUES, code, rng.choice(TEXTS), [rng.choice(TEXTS) for _ in range(rng.randrange(4))]])


def almost_right(rng: random.Random) -> dict:
    """What would be translated but for a field or two."""
    body = {"text": rng.choice(TEXTS), "q": rng.choice(TEXTS), "source": "en", "target": rng.choice(["de", "en"])}
    body["format"] = rng.choice(["text", "html", "markdown", "subtitles"])
    body.pop(rng.choice(["text", "q"]))
    for _ in range(rng.randrange(3)):
        body[rng.choice(FIELDS)] = value(rng)
    return body


def broken(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of it other ones, or fewer."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found[: rng.randrange(len(found) + 1)]) if rng.random() < 0.3 else bytes(found)


def body_of(rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    if kind < 3:
        return json.dumps(almost_right(rng)).encode()
    if kind == 3:
        return broken(json.dumps(almost_right(rng)).encode(), rng)
    if kind == 4:
        return b'{"text": "one", "target": ' + b"[" * rng.randrange(50_000)
    if kind == 5:
        return json.dumps({"text": "one " * rng.randrange(1_000, 30_000), "target": "de"}).encode()
    if kind == 6:
        return f"q={rng.choice(TEXTS)}&target=de&source=%{rng.randrange(256):02x}".encode()
    return rng.randbytes(rng.randrange(2_000))


def request_of(rng: random.Random) -> tuple[bytes, bool]:
    """The bytes of a request, most of them of HTTP's form, and whether it is whole, so that an answer must come."""
    body = body_of(rng)
    method = rng.choice(["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "HEAD", "PRI", "<b>"])
    path = rng.choice([*PATHS[1:5], *PATHS, rng.choice(TRICKS)])
    media_type = rng.choice(["application/json"] * 3 + ["application/x-www-form-urlencoded", "text/html", ""])
    length = rng.choice([len(body)] * 8 + [-1, 10**12, "x", len(body) + 5])
    host = rng.choice(["localhost"] * 6 + ["evil.example", "localhost:99999", "", "a" * 300])
    extra = rng.choice([[]] * 6 + [["Transfer-Encoding: chunked"], ["X: " + "y" * 20_000], UPGRADE])
    lines = f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {media_type}", f"Content-Length: {length}"
    request = "\r\n".join([*lines, *extra, "Connection: close", "", ""]).encode() + body
    if rng.random() < 0.15:
        return broken(request, rng), False
    return request, length == len(body) and extra != ["Transfer-Encoding: chunked"]


def ask(port: int, request: bytes, is_whole: bool) -> bytes:
    """What comes back before the server hangs up; for what is not whole we hang up ourselves."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=120 if is_whole else 0.5) as client:
        try:
            client.sendall(request)
            while part := client.recv(65_536):
                received += part
        except ConnectionError:  # it hung up on what it did not want to read
            pass
        except TimeoutError:
            assert not is_whole, request[:2_000]
    return received


def attack(process: Process, number: int, seed: int) -> Counter[int]:
    """Send so many requests, some at once; the number of answers by status, 0 for none."""
    rng, port = random.Random(seed), int(process.url.rpartition(":")[2])
    requests = [request_of(rng) for _ in range(number)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: ask(port, *one), requests))
    return Counter(checked(request, answer) for (request, _), answer in zip(requests, answers, strict=True))


def checked(request: bytes, answer: bytes) -> int:
    """The status of an answer, that is as it should be."""
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    assert status == 0 or 200 <= status < 500, request[:2_000]
    head, _, body = answer.partition(b"\r\n\r\n")
    if status >= 400 and body and b"application/json" in head.lower():
        assert {"error", "code"} == json.loads(body).keys()
    assert b"Traceback" not in answer and b"root:" not in answer
    if b"text/html" in head.lower():
        assert not body or body.rstrip().endswith(b"</html>")  # our page, and nobody's words
    return status


def test_it_goes_on(server):
    before = post(server.url, {"text": "one two three", "target": "de"}).json()["translations"]
    found = attack(server, 400, seed=0)
    assert found[200] > 5 and found[400] > 30 and found[0] < 50, found
    assert post(server.url, {"text": "one two three", "target": "de"}).json()["translations"] == before
    assert server.process.poll() is None


@pytest.mark.slow
def test_it_goes_on_for_long_and_memory_does_not_grow(directory):
    with Process(directory / "model", "--beam", 1, "--max-characters", 4_000, "--threads", 1, "--cache", 50) as process:
        LibreTranslateAPI(process.url).detect("one")  # its model is loaded when it is first asked
        attack(process, 4_000, seed=1)  # what is loaded for one kind of text or another
        memory = psutil.Process(process.process.pid)
        before = memory.memory_info().rss
        found = attack(process, 6_000, seed=2)
        assert sum(found.values()) == 6_000
        assert memory.memory_info().rss < before + 8 * 2**20
        assert memory.num_fds() < 64 and memory.num_threads() < 20
        assert get(f"{process.url}/health").status_code == 200
        assert "deltalm_requests_at_work 0.0" in get(f"{process.url}/metrics").text
        assert process.end() == 0


def test_what_is_said_is_data_and_never_markup(server):
    """A JSON answer that no browser takes for a page; the page puts texts in as texts only, and loads nothing."""
    response = post(server.url, {"text": "one", "target": "<script>alert(1)</script>"})
    assert response.headers["content-type"] == "application/json"
    source = Path(page.__file__).with_name("page.html").read_text()
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert sink not in source
    assert "http:" not in source and "https:" not in source and "//" not in source.replace("</", "")
    assert " style=" not in source and " onclick" not in source


@pytest.mark.parametrize("format", ["text", "html", "markdown", "subtitles"])
@pytest.mark.parametrize("unit", [".", "a.", "é", "<a ", "<a b='", "{{a", "a@", "`a ", "[a]("])
def test_no_text_takes_much_longer_than_another(unit, format):
    """As long as a request may be: what looks for patterns in it holds up all requests meanwhile."""
    text = (unit * 100_000)[:100_000]
    began = time.process_time()
    TranslatedDocument(FORMATS[format].read(text.encode()), lambda texts: [], lambda part: True).sentences  # noqa: B018
    assert time.process_time() - began < 5
