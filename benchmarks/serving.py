"""A server under load: many clients at once, each with one sentence after the other, beside engines alone.

The server is a process of its own, with `--beam` and without a cache, of the model and of its export to CTranslate2.
Every client sends the next sentence when it has its answer; who is refused waits as long as it is told. Alone, in a
process of its own as well, with as many threads, are translated `ENOUGH` of the sentences, as ids,
all at once and sorted by length: by our engine as `deltalm translate` does, and by CTranslate2's own
`translate_batch`. What the server gives away to that is HTTP, segmentation, smaller batches, sentences of unlike
length, and the clients, which run on the same machine. Alone they run before the servers and after them, and the ratio
is to the mean: a machine has other things to do at one time and another.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import psutil

from benchmarks.recording import existing, parser, report, row_of_process
from deltalm_ds.generation.interface import Ids, SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import encoder_for, generate
from deltalm_ds.lines import read_lines
from deltalm_ds.threads import threads_to_take
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

ALONE = {"pytorch": "our engine alone", "ctranslate2": "CTranslate2 alone"}
ENOUGH = 4_000  # sentences to measure an engine alone with
BATCH_TOKENS = 1_024  # of CTranslate2's own batches: of 256 to 4,096 the fastest here


def main() -> None:
    """Load servers with each number of clients, and show the table."""
    options = parser(__doc__)
    options.add_argument("model", type=existing, help="a model directory")
    options.add_argument("--export", type=existing, required=True, help="its export to CTranslate2")
    options.add_argument("--lines", type=existing, required=True, help="sentences, one a line")
    options.add_argument("--target-lang", help="where the model has tags")
    options.add_argument("--clients", type=int, nargs="+", default=[32, 1_000], help="at once")
    options.add_argument("--seconds", type=float, default=60.0, help="of each")
    options.add_argument("--beam", type=int, default=5, help="of the search")
    options.add_argument("--queue", type=int, default=1_000, help="requests that may wait in the server")
    options.add_argument("--threads", type=int, default=0, help="of the engine")
    options.add_argument("--alone", choices=ALONE, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    lines = [line for line in read_lines(arguments.lines) if line.strip()]
    if arguments.alone:
        print(json.dumps(_alone(arguments, arguments.alone, lines)))
        return
    rows = _both_alone("before")
    for number in arguments.clients:
        for name, directory in {"pytorch": arguments.model, "ctranslate2": arguments.export}.items():
            rows.append({"what": f"server, {name}, {number:,} clients"} | _served(arguments, directory, lines, number))
            print(rows[-1], file=sys.stderr, flush=True)
    rows += _both_alone("after")
    mean = np.mean([row["sentences/s"] for row in rows if row["what"].startswith(ALONE["ctranslate2"])])
    rows = [row | {"of CTranslate2 alone": row["sentences/s"] / float(mean)} for row in rows]
    title = f"A server under load beside CTranslate2 alone, {arguments.model.name}, {os.cpu_count()} cores"
    notes = [
        "Milliseconds from a client's request to its answer; refused: 429 with Retry-After; failed: whatever else. "
        "Every server went on to its end and left with 0."
    ]
    report(arguments, title, " ".join(["python -m benchmarks.serving", *sys.argv[1:]]), rows, notes)


@contextmanager
def _server(arguments: argparse.Namespace, directory: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server of its own: its port and its process, which must end well."""
    command = [sys.executable, "-c", "from deltalm_ds.cli import main; main()", "serve", str(directory), "--port", "0"]
    numbers = {"--cache": 0, "--beam": arguments.beam, "--threads": arguments.threads, "--queue": arguments.queue}
    command += [str(part) for option in numbers.items() for part in option]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"http://\S+:(\d+)", process.stderr.readline())
        try:
            assert found, process.stderr.read()
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
    assert process.returncode == 0, process.returncode


@dataclass
class _Seen:
    """What clients see. statuses: "answered", "refused" or "failed". latencies: of answers, seconds."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)


def _served(arguments: argparse.Namespace, directory: Path, lines: Sequence[str], number: int) -> dict[str, Any]:
    """What so many clients see of a server."""
    with _server(arguments, directory) as (port, process):
        seen = _Seen()
        began = time.monotonic()
        asyncio.run(_all_clients(port, lines, number, arguments, seen))
        seconds = time.monotonic() - began
        memory = process.memory_info().rss / 2**20
    p50, p95 = (np.percentile(seen.latencies, [50, 95]) * 1000).tolist()
    counts = {name: seen.statuses[name] for name in ("answered", "refused", "failed")}
    return {**counts, "sentences/s": len(seen.latencies) / seconds, "p50 ms": p50, "p95 ms": p95, "MiB": memory}


async def _all_clients(
    port: int, lines: Sequence[str], number: int, arguments: argparse.Namespace, seen: _Seen
) -> None:
    coming = (json.dumps({"text": line, "target": arguments.target_lang}).encode() for line in cycle(lines))
    end = time.monotonic() + arguments.seconds
    await asyncio.gather(*(_client(port, coming, end, seen) for _ in range(number)))


async def _client(port: int, bodies: Iterator[bytes], end: float, seen: _Seen) -> None:
    """Ask until the time is over, by one connection; plain sockets, so that clients take little of the machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    while (began := time.monotonic()) < end:
        body = next(bodies)
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_number(rb"content-length", answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            seen.statuses["failed"] += 1
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        status = int(answer[9:12])
        seen.statuses[{200: "answered", 429: "refused"}.get(status, "failed")] += 1
        if status == 200:
            seen.latencies.append(time.monotonic() - began)
        elif status == 429:
            await asyncio.sleep(_number(rb"retry-after", answer))
    writer.close()


def _number(name: bytes, head: bytes) -> int:
    found = re.search(rb"\r\n" + name + rb": (\d+)\r\n", head)
    assert found, head
    return int(found[1])


def _both_alone(when: str) -> list[dict[str, Any]]:
    found = [row_of_process(["-m", "benchmarks.serving", *sys.argv[1:], "--alone", name]) for name in ALONE]
    return [row | {"what": f"{row['what']}, {when}"} for row in found]


def _alone(arguments: argparse.Namespace, name: str, lines: Sequence[str]) -> dict[str, Any]:
    """An engine alone, in this process, with all sentences at once."""
    directory = arguments.model if name == "pytorch" else arguments.export
    vocabulary = Vocabulary.load(directory)
    encode = encoder_for(vocabulary, arguments.target_lang)
    sources = [encode(line) for line in islice(cycle(lines), ENOUGH)]
    threads = arguments.threads or threads_to_take()
    translate: Callable[[Sequence[Ids]], Any]
    if name == "pytorch":
        translate = partial(generate, load_engine(directory, threads=threads), options=SearchOptions(arguments.beam))
    else:
        translator = ctranslate2.Translator(str(directory), "cpu", intra_threads=threads)

        def translate(some: Sequence[Ids]) -> Any:
            tokens = [[vocabulary.token(token) for token in (*ids, EOS_ID)] for ids in some]
            return translator.translate_batch(
                tokens, beam_size=arguments.beam, max_batch_size=BATCH_TOKENS, batch_type="tokens"
            )

    translate(sources[:64])
    began = time.monotonic()
    translate(sources)
    return {"what": ALONE[name], "answered": ENOUGH, "sentences/s": ENOUGH / (time.monotonic() - began)}


if __name__ == "__main__":
    main()
