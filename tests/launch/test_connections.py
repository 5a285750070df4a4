"""Connections over a program called ssh that runs the command here."""

import json
import sys
import time

import pytest

from deltalm_ds.launch.connections import Connections

SSH = """#!/bin/sh
while [ $# -gt 2 ]; do shift; done
[ "$1" = off ] && { echo "ssh: connect to host off port 22: Connection refused" >&2; exit 255; }
exec sh -c "$2"
"""
ECHO = f"""exec {sys.executable} -c '
import json, sys
print("Welcome to this host")
print(json.dumps([1]))
print(json.dumps(dict(hello=1)), flush=True)
for line in sys.stdin:
    print(json.dumps(dict(got=json.loads(line))), flush=True)
print("a last word", file=sys.stderr)
'"""


@pytest.fixture
def connect(tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = []

    def connect(**commands):
        made.append(Connections(list(commands), list(commands.values())))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def gather(connections, condition):
    messages, ended, until = [], [], time.monotonic() + 60
    while not condition(messages, ended):
        assert time.monotonic() < until, (messages, ended)
        more, closed = connections.read(0.1)
        messages, ended = messages + more, ended + closed
    return messages, ended


def test_lines_go_both_ways_and_greetings_are_none(connect):
    connections = connect(n1=ECHO, n2=ECHO)
    connections.send(1, {"text": "a 'b' $c\n"})
    messages, _ = gather(connections, lambda messages, _: len(messages) == 3)
    assert sorted(messages, key=json.dumps) == [
        (0, {"hello": 1}),
        (1, {"got": {"text": "a 'b' $c\n"}}),
        (1, {"hello": 1}),
    ]


def test_a_host_that_is_not_reached_is_told_with_the_next_step(connect):
    connections = connect(off="true", n1=ECHO)
    _, ended = gather(connections, lambda _, ended: ended)
    ((number, words, ssh_failed),) = ended
    assert number == 0 and ssh_failed and words.startswith("off refuses the connection: see whether sshd runs there")


def test_an_end_is_told_once_with_what_was_said(connect):
    connections = connect(n1="echo '{\"hello\": 1}'; echo a last word >&2; exit 9")
    _, ended = gather(connections, lambda _, ended: ended)
    assert ended == [(0, "a last word", False)]
    connections.send(0, {"alive": 1})  # nobody reads it
    assert connections.read(0.1) == ([], [])


def test_who_is_dropped_is_ended_and_silent(connect):
    connections = connect(n1="exec sleep 1000")
    began = time.monotonic()
    connections.drop(0)
    assert connections.read(0.1)[0] == [] and time.monotonic() - began < 30
