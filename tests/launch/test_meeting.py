"""Where all hosts of a job reach its first one."""

import socket
import threading
import time

import pytest

from deltalm_ds.launch.meeting import Listener, common_address, own_addresses, reached


@pytest.fixture
def listener():
    found, done = Listener(), threading.Event()

    def serve():
        while not done.is_set():
            found.serve()
            time.sleep(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    yield found
    done.set()
    thread.join()
    found.close()


def test_who_says_the_word_is_reached_with_the_address_that_one_has_there(listener):
    assert reached(["127.0.0.1"], listener.port, listener.word) == {"127.0.0.1": "127.0.0.1"}
    assert reached(["127.0.0.1"], listener.port, "another word") == {}
    addresses = list(own_addresses())
    assert reached(addresses, listener.port, listener.word).keys() == set(addresses)


def test_another_program_on_the_port_is_nobody():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        assert reached(["127.0.0.1"], port, "word") == {}
    assert reached(["127.0.0.1"], port, "word") == {}  # nobody listens


def test_a_port_that_is_taken_is_told_and_one_that_was_met_at_is_free_at_once(listener):
    with pytest.raises(OSError, match="in use"):
        Listener(listener.port)
    mine = Listener()
    thread = threading.Thread(target=lambda: [mine.serve() or time.sleep(0.01) for _ in range(100)])
    thread.start()
    assert reached(["127.0.0.1"], mine.port, mine.word)
    thread.join()
    mine.close()
    with socket.socket() as plain:  # as a program that does not ask to share it
        plain.bind(("127.0.0.1", mine.port))


def test_a_client_that_says_nothing_holds_nobody_up(listener):
    silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(8)]
    began = time.monotonic()
    assert reached(["127.0.0.1"], listener.port, listener.word)
    assert time.monotonic() - began < 2  # each could cost 3 s
    for client in silent:
        client.close()


def test_the_first_address_that_all_reach():
    assert common_address(["a", "b", "c"], [["a", "b", "c"], ["b", "c"], ["c", "b"]]) == "b"
    assert common_address(["a", "b"], [["a"], ["b"]]) is None


def test_loopback_comes_last():
    addresses = list(own_addresses())
    assert addresses[-1].startswith("127.")
