"""A server under load: many clients at once, each with one sentence after the other, beside the engine alone.

The server is a process of its own, with `--beam` and without a cache. Every client sends the next sentence when it has
its answer. The engine alone translates as many sentences as were answered, sorted by length, as `deltalm translate`
does with a file: what the server loses to HTTP, to smaller batches and to sentences of unlike length. Run it on a
machine with nothing else to do.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.recording import parser, report
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import encoder_for, generate
from deltalm_ds.lines import read_lines
from deltalm_ds.vocabulary import Vocabulary


def main() -> None:
    """Load a server with each number of clients, and show the table."""
    options = parser(__doc__)
    options.add_argument("model", type=Path, help="a model directory or an export")
    options.add_argument("--lines", type=Path, required=True, help="sentences, one a line")
    options.add_argument("--target-lang", help="where the model has tags")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 32, 1_000], help="at once")
    options.add_argument("--seconds", type=float, default=60.0, help="of each")
    options.add_argument("--beam", type=int, default=5, help="of the search")
    options.add_argument("--threads", type=int, default=0, help="of the engine")
    arguments = options.parse_args()
    lines = [line for line in read_lines(arguments.lines) if line.strip()]
    rows = []
    for number in arguments.clients:
        with _server(arguments) as url:
            rows.append(asyncio.run(_loaded(url, lines, number, arguments)))
        print(rows[-1], file=sys.stderr, flush=True)
    rows.append(_alone(arguments, list(islice(cycle(lines), max(row["answered"] for row in rows)))))
    title = f"A server under load, {arguments.model.name}, {os.cpu_count()} cores"
    note = "Milliseconds from a client's request to its answer; refused are answers of 429 and 504."
    report(arguments, title, " ".join(["python -m benchmarks.serving", *sys.argv[1:]]), rows, [note])


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    """A server of its own; its address."""
    command = [sys.executable, "-c", "from deltalm_ds.cli import main; main()", "serve", str(arguments.model)]
    command += ["--port", "0", "--cache", "0", "--beam", str(arguments.beam), "--threads", str(arguments.threads)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        try:
            assert found, process.stderr.read()
            yield found[0]
        finally:
            process.terminate()


async def _loaded(url: str, lines: Sequence[str], number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What so many clients see."""
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    coming = cycle(lines)
    limits = httpx2.Limits(max_connections=number, max_keepalive_connections=number)
    async with httpx2.AsyncClient(limits=limits, timeout=120) as client:
        end = time.monotonic() + arguments.seconds

        async def ask() -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                body = {"text": next(coming), "target": arguments.target_lang}
                response = await client.post(f"{url}/v1/translate", json=body)
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    latencies.append(time.monotonic() - began)

        began = time.monotonic()
        await asyncio.gather(*(ask() for _ in range(number)))
        seconds = time.monotonic() - began
    p50, p95 = np.percentile(latencies, [50, 95]) * 1000
    return {
        "what": f"server, {number} clients",
        "answered": len(latencies),
        "refused": statuses.total() - len(latencies),
        "sentences/s": len(latencies) / seconds,
        "p50 ms": p50,
        "p95 ms": p95,
    }


def _alone(arguments: argparse.Namespace, lines: Sequence[str]) -> dict[str, Any]:
    """The engine alone, in this process, with all sentences at once."""
    engine = load_engine(arguments.model, threads=arguments.threads)
    encode = encoder_for(Vocabulary.load(arguments.model), arguments.target_lang)
    sources = [list(encode(line))[: engine.max_positions - 1] for line in lines]
    options = SearchOptions(beam=arguments.beam)
    generate(engine, sources[:8], options)
    began = time.monotonic()
    generate(engine, sources, options)
    return {"what": "engine alone", "answered": len(lines), "sentences/s": len(lines) / (time.monotonic() - began)}


if __name__ == "__main__":
    main()
