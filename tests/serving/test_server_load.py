"""A server that is asked for too much, for too long, by clients that go; that is stopped, and whose models change."""

import contextlib
import json
import logging
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import httpx2
import pytest

from deltalm_ds.serving import bodies, server, work
from deltalm_ds.serving.limits import ApiKeys, Limits
from deltalm_ds.serving.service import Service
from tests.cli.command import deltalm
from tests.serving.served import Process, echo_service, get, make_model, post, running, until

ONE = {"text": "one", "target": "de"}
POST = b"POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_more_than_may_wait_are_refused_and_the_loop_stays_free(directory):
    with (
        mock.patch.object(work, "AT_WORK", 2),
        echo_service(directory, Limits(waiting=3)) as (service, engine),
        running(service) as url,
        ThreadPoolExecutor(5) as threads,
    ):
        engine.hold()
        waiting = [threads.submit(post, url, ONE) for _ in range(5)]
        until(lambda: service.work.num_requests == 5)
        for body in (ONE, ONE | {"stream": True}):
            refused = post(url, body)
            assert (refused.status_code, refused.json()["code"]) == (429, "busy")
            assert int(refused.headers["retry-after"]) > 0
        assert get(f"{url}/health").status_code == 200
        assert service.work.num_requests == 5  # while these wait
        engine.free()
        assert [one.result().status_code for one in waiting] == [200] * 5
        until(lambda: service.work.num_requests == 0)
        assert post(url, ONE).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_given_up(directory, stream):
    with echo_service(directory, Limits(timeout_s=1.0)) as (service, engine), running(service) as url:
        engine.hold()
        response = post(url, ONE | {"stream": stream})
        assert (response.status_code, response.json()["code"]) == (504, "timeout")
        second = post(url, {"text": "two", "target": "de"})  # waits behind the batch that runs
        assert second.status_code == 504
        engine.free()
        until(lambda: service.work.num_requests == 0)
        assert len(engine.batches) == 1  # what had not begun never did


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_what_has_not_begun(directory, stream):
    with echo_service(directory) as (service, engine), running(service) as url:
        engine.hold()
        with ThreadPoolExecutor(1) as threads:
            running_one = threads.submit(post, url, ONE)
            assert engine.begun.acquire(timeout=60)
            body = json.dumps({"texts": ["two", "three"], "target": "de", "stream": stream}).encode()
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
                client.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                until(lambda: service.work.num_requests == 2)
            until(lambda: service.work.num_requests == 1)
            engine.free()
            assert running_one.result().status_code == 200
        assert len(engine.batches) == 1


def test_a_stream_is_heard_before_it_ends(directory):
    with echo_service(directory) as (service, engine), running(service) as url:
        engine.hold()
        text = ". ".join(["One two three four five six seven"] * 3 + ["Eight"])
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(post, url, ONE)
            assert engine.begun.acquire(timeout=60)
            engine.free()
            assert first.result().status_code == 200
        with httpx2.stream(
            "POST", f"{url}/v1/translate", json={"text": text, "target": "de", "stream": True}
        ) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["sentence"]["source"] == "One two three four five six seven."
            *_, last = lines
        assert "translations" in json.loads(last)


def test_a_fault_of_the_engine_is_told_without_its_words(directory, capfd):
    with echo_service(directory) as (service, engine), running(service) as url:
        engine.bad = service.models._models["echo"].vocabulary.encode("two").tolist()[0]
        for stream in (False, True):
            response = post(url, {"text": "two", "target": "de", "stream": stream})
            assert response.status_code == 500
            assert response.json() == {"error": "The server failed here; its log says why.", "code": "failed"}
            assert "content-security-policy" in response.headers
        assert post(url, ONE).status_code == 200


def test_clients_that_are_slow_are_cut_off(directory):
    started = {
        b"": b"",
        b"POST /v1/tr": b"",
        POST: b"",
        POST + b"Content-Length: 50\r\n\r\n{": b"HTTP/1.1 408",
        POST + b"Content-Length: 99999999999\r\n\r\n{": b"HTTP/1.1 413",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{": b"HTTP/1.1 408",
    }
    with (
        echo_service(directory) as (service, _),
        running(service) as url,
        contextlib.ExitStack() as stack,
    ):
        address = "127.0.0.1", int(url.rpartition(":")[2])
        with mock.patch.object(bodies, "BODY_S", 1.0), mock.patch.object(server, "BODY_S", 1.0):
            clients = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in started]
            for client, start in zip(clients, started, strict=True):
                client.sendall(start)
            for client, (start, answer) in zip(clients, started.items(), strict=True):
                received = b""
                while part := client.recv(65_536):
                    received += part
                assert received[:12] == answer, start
            client = stack.enter_context(socket.create_connection(address, timeout=60))
            with pytest.raises(OSError):
                for _ in range(1_000):  # a byte now and then does not help
                    client.sendall(b"G")
                    time.sleep(0.05)
        assert post(url, ONE).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_is_cut_off(directory, stream):
    """Neither its connection nor its answer is kept."""
    transports, made = [], server.LimitedProtocol.connection_made

    def remembered(self, transport):
        transports.append(transport)
        made(self, transport)

    with (
        mock.patch.object(server, "BODY_S", 0.3),
        mock.patch.object(server.LimitedProtocol, "connection_made", remembered),
        echo_service(directory) as (service, _),
        running(service, send_buffer=4_096) as url,
        socket.socket() as client,
    ):
        text = "".join(f"One two three {number}. " for number in range(400))
        body = json.dumps({"text": text, "target": "de", "n_best": 5, "stream": stream}).encode()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        client.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: transports and transports[0].is_closing() and not transports[0].get_write_buffer_size())
        until(lambda: service.work.num_requests == 0)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65_536):
                received += part
        assert received.startswith(b"HTTP/1.1 200") and b'"seconds"' not in received  # the end of an answer
        assert post(url, ONE).status_code == 200


def test_a_client_that_reads_slowly_is_waited_for():
    """By a clock of the test's own: as long as it takes so many bytes each time that is looked."""
    protocol = server.LimitedProtocol.__new__(server.LimitedProtocol)
    protocol.flow, protocol.transport, protocol.loop = mock.Mock(), mock.Mock(), mock.Mock()
    waiting = protocol.transport.get_write_buffer_size

    def later(bytes_left: int) -> bool:
        """Whether it is cut off when the time is over."""
        _, look = protocol.loop.call_later.call_args.args
        waiting.return_value = bytes_left
        look()
        return protocol.transport.abort.called

    waiting.return_value = 10 * server.READ_BYTES
    protocol.pause_writing()
    assert [later(left * server.READ_BYTES) for left in (9, 7, 6)] == [False] * 3
    protocol.resume_writing()  # all is read
    assert protocol.loop.call_later.return_value.cancel.called
    waiting.return_value = server.READ_BYTES
    protocol.pause_writing()
    assert later(1)


def test_what_breaks_off_while_it_is_answered_is_no_fault_of_the_server(directory):
    """A request that turns out to be none, or is followed by none, is refused; nothing is written to the log."""
    with (
        mock.patch.object(logging.getLogger("uvicorn.error"), "error") as said,
        echo_service(directory) as (service, _),
        running(service) as url,
    ):
        head, body = b"/health HTTP/1.1\r\nHost: x\r\n", json.dumps(ONE).encode()
        whole = POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        chunked = head + b"Transfer-Encoding: chunked\r\n"
        for request in (
            b"GET " + chunked + b"\r\nnonsense\r\n",
            b"HEAD " + chunked + b"\r\nnonsense\r\n",
            b"GET " + chunked + b"Connection: close\r\n\r\n2\r\nx",
            whole + b"\xff\0 nonsense\r\n\r\n",
            whole + b"HEAD " + head + b"\r\n\xff\0\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as client:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while client.recv(65_536):
                        pass
        until(lambda: service.work.num_requests == 0)
    assert said.call_args_list == []


def test_alignments_of_an_engine_that_does_not_show_them_are_refused(directory):
    with echo_service(directory) as (service, _), running(service) as url:
        (model,) = get(f"{url}/v1/models").json()["models"]
        assert model["alignments"] is False
        for stream in (False, True):
            response = post(url, ONE | {"alignments": "words", "stream": stream})
            assert response.status_code == 400
            assert response.json()["error"] == "echo does not show what its outputs look at: leave alignments out."


def test_a_long_body_is_not_read_to_its_end(directory):
    with echo_service(directory, Limits(characters=10)) as (service, _), running(service) as url:
        headers = {"Content-Type": "application/json"}
        response = httpx2.post(
            f"{url}/v1/translate", content=(b"x" * 65_536 for _ in range(3)), headers=headers, timeout=60
        )
        assert response.status_code == 413


# --- the same sentence again ---


def test_a_sentence_is_translated_once(directory):
    with echo_service(directory, cache_size=100) as (service, engine), running(service) as url:
        first, second = post(url, ONE).json(), post(url, ONE).json()
        assert first["translations"] == second["translations"]
        post(url, ONE | {"beam": 2})
        post(url, ONE | {"target": "en"})
        assert len(engine.batches) == 3
        assert 'deltalm_cached_sentences_total{model="echo"} 1.0' in get(f"{url}/metrics").text


# --- other models ---


def test_a_model_is_loaded_anew_without_a_gap(tmp_path, capfd):
    make_model(tmp_path)
    service = Service([str(tmp_path / "model")], Limits(beam=1), ApiKeys(None), {"threads": 1}, 0)
    body = {"text": "one two three four", "target": "de"}
    with running(service) as url:
        old = post(url, body).json()["translations"]
        make_model(tmp_path, seed=1)
        stop, found = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                response = post(url, body)
                found.append((response.status_code, response.json()["translations"]))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            until(lambda: len(found) > 2)
            (before,) = service.models
            service.reload()
            asked = len(found)
            until(lambda: len(found) > asked + 2)
        finally:
            stop.set()
            thread.join()
        new = post(url, body).json()["translations"]
        assert new != old
        assert found[0] == (200, old) and found[-1] == (200, new)
        assert all(one in ((200, old), (200, new)) for one in found)
        until(lambda: not before._batcher._thread.is_alive())
        (tmp_path / "model" / "model.safetensors").write_bytes(b"half of")  # an unfinished download
        service.reload()
        assert post(url, body).json()["translations"] == new
    said = capfd.readouterr().err
    assert "serve: model was loaded anew." in said and "serve: model stays as it was: " in said
    service.close()


def test_signals(directory, tmp_path):
    """SIGHUP reads keys and models again; SIGTERM answers what has come, takes nothing new, and is no failure."""
    (tmp_path / "keys").write_text("first\n")
    arguments = directory / "model", "--threads", 1, "--timeout", 300, "--api-keys", tmp_path / "keys"
    with Process(*arguments) as process, ThreadPoolExecutor(1) as threads:
        process.process.send_signal(signal.SIGHUP)  # from its first line on
        assert process.line() == "serve: model was loaded anew.\n"
        headers = {"Authorization": "Bearer second"}
        assert post(process.url, ONE, headers=headers).status_code == 403
        (tmp_path / "keys").write_text("second\n")
        process.process.send_signal(signal.SIGHUP)
        assert process.line() == "serve: model was loaded anew.\n"
        assert post(process.url, ONE, headers=headers).status_code == 200
        texts = ["one two three four five six seven eight nine ten"[number % 9 :] for number in range(250)]
        long = {"texts": [f"{text} {number}" for number, text in enumerate(texts)], "target": "de", "beam": 4}
        answer = threads.submit(post, process.url, long, headers=headers)
        until(
            lambda: (
                answer.done()
                or "deltalm_waiting_sentences 0.0" not in get(f"{process.url}/metrics", headers=headers).text
            )
        )
        process.process.terminate()
        assert process.line().startswith("serve: stopping")
        with pytest.raises(httpx2.TransportError):
            for _ in range(200):
                get(f"{process.url}/health")
                time.sleep(0.01)
        assert answer.result().status_code == 200
        assert process.process.wait(60) == 0  # a second SIGTERM would end it at once


def test_it_ends_when_nobody_reads_what_it_says(directory):
    with Process(directory / "model", "--threads", 1) as process:
        process.process.stderr.close()
        assert post(process.url, ONE).status_code == 200
        process.process.send_signal(signal.SIGHUP)  # of which it says that it was done
        assert post(process.url, ONE).status_code == 200
        process.process.terminate()
        assert process.process.wait(60) == 0


def test_what_is_wrong_at_the_start_is_one_sentence(directory, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "empty").write_text("# none\n")
        for arguments, code, words in (
            (("model", "--host", "0.0.0.0"), 2, "give --api-keys FILE, or --open"),
            (("model", "--port", port), 2, f"cannot listen at 127.0.0.1, port {port} (Address already in use): name"),
            (("model", "--host", "192.0.2.1", "--open"), 2, "cannot listen at 192.0.2.1"),
            (("model", "--host", 64 * "a", "--open"), 2, "(no name of a host): name others"),
            (("model", "--api-keys", tmp_path / "empty"), 2, "has no API key"),
            (("model", "--api-keys", tmp_path / "none"), 2, "cannot be read"),
            (("model", "model"), 2, "Two models have the name 'model'"),
            (("nothing",), 2, "nothing/config.json does not exist: give a model directory"),
            (("vocabulary",), 2, "vocabulary"),
            (("model", "--beam", 99), 2, "1 to 16"),
            (("model", "--queue", -1), 2, "above 0"),
            (("model", "--engine", "onnx"), 2, "is for pytorch"),
        ):
            names = [directory / name if name in ("model", "vocabulary", "nothing") else name for name in arguments]
            port_option = () if "--port" in arguments else ("--port", 0)
            outcome = deltalm("serve", *names, *port_option)
            assert outcome.code == code, arguments
            assert len(outcome.messages) == 1 and words in outcome.messages[0], outcome.stderr
