"""Servers to ask: `deltalm serve` as a process, or its parts in a thread with an engine that a test holds."""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import torch
import uvicorn

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.generation.interface import Hypothesis, Ids, SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.serving import models
from deltalm_ds.serving.app import make_app
from deltalm_ds.serving.limits import ApiKeys, Limits
from deltalm_ds.serving.server import LimitedProtocol, listen
from deltalm_ds.serving.service import Service
from deltalm_ds.vocabulary import Vocabulary
from tests.cli.command import WORDS, must

ROOT = Path(__file__).parents[2]


def make_model(directory: Path, seed: int = 0) -> None:
    """A tiny model with random weights at `directory/model`, its vocabulary at `directory/vocabulary`."""
    if not (directory / "vocabulary").exists():
        lines = [" ".join(WORDS[(number + shift) % 10] for shift in range(1 + number % 7)) for number in range(40)]
        (directory / "text").write_text("".join(f"{line}.\n" for line in lines))
        settings = "--size", 28, "--sentinels", 2, "--languages", "en,de,zh_Hans", "--out", directory / "vocabulary"
        must("vocab", "train", "--input", directory / "text", *settings)
    vocabulary = Vocabulary.load(directory / "vocabulary")
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=24)
    torch.manual_seed(seed)
    # as large as these: outputs differ from sentence to sentence
    made = DeltaLM(config).state_dict()
    weights = {name: 2 * tensor if tensor.ndim == 2 else tensor for name, tensor in made.items()}
    with contextlib.suppress(FileNotFoundError):
        for path in (directory / "model").iterdir():
            path.unlink()
        (directory / "model").rmdir()
    save_model(directory / "model", config, weights, vocabulary, {})


class Process:
    """`deltalm serve` at a port of its own. url: where it answers."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-c", "from deltalm_ds.cli import main; main()", "serve", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment, cwd="/"
        )
        assert self.process.stderr is not None
        self._said = self.process.stderr
        first = self._said.readline()
        found = re.search(r"http://\S+", first)
        assert found, first + self._said.read()
        self.url = found[0]

    def line(self) -> str:
        """The next that it says."""
        return self._said.readline()

    def end(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.terminate()
        self.process.communicate(timeout=60)
        return self.process.returncode

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()


class Echo:
    """An engine that says what it hears, when it is let: `hold` makes it wait for `free`.

    Attributes:
        batches: sources of each batch that began.
        begun: released once for each.
        bad: a source with this token cannot be translated.
    """

    vocabulary_size, max_positions, batch_tokens = 64, 40, 400
    bad: int | None = None

    def __init__(self) -> None:
        self.batches: list[list[Ids]] = []
        self.begun = threading.Semaphore(0)
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        """Let no batch end."""
        self._free.clear()

    def free(self) -> None:
        """Let them end."""
        self._free.set()

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        self.batches.append(list(sources))
        self.begun.release()
        assert self._free.wait(60)
        if any(self.bad in source for source in sources):
            raise ValueError("a token that nobody translates")
        words = [tuple(token for token in source[1:] if token < 40) for source in sources]
        return [[Hypothesis(ids, -float(place)) for place in range(options.n_best)] for ids in words]

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        return [[-1.0] * (len(target) + 1) for target in targets]


@contextlib.contextmanager
def echo_service(
    directory: Path, limits: Limits | None = None, keys: ApiKeys | None = None, cache_size: int = 0
) -> Iterator[tuple[Service, Echo]]:
    """A service whose model is an `Echo`, with the vocabulary of a directory of `make_model`."""
    engine = Echo()
    with mock.patch.object(models, "load_engine", lambda *args, **kwargs: engine):
        service = Service(
            [f"echo={directory / 'vocabulary'}"], limits or Limits(), keys or ApiKeys(None), {}, cache_size
        )
    with mock.patch.object(models.Model, "engine_name", "echo"):
        try:
            yield service, engine
        finally:
            engine.free()
            service.close()


@contextlib.contextmanager
def running(service: Service, send_buffer: int | None = None) -> Iterator[str]:
    """The service behind a real uvicorn in a thread; its address. send_buffer: bytes that the system keeps."""
    listener = listen("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    app = make_app(service)
    config = uvicorn.Config(app, http=LimitedProtocol, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def get(url: str, **settings: Any) -> httpx2.Response:
    """Ask for something; a machine that does other things, too, has its time."""
    return httpx2.get(url, timeout=60, **settings)


def post(url: str, body: Any, **settings: Any) -> httpx2.Response:
    """Ask our own API."""
    return httpx2.post(f"{url}/v1/translate", json=body, timeout=60, **settings)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition; a failure if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
