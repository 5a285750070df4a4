"""Generation by every engine at one size, in one run: `make bench-inference`, or with --record.

A model with seeded random weights is exported to every engine's format without the parity check (which other tests
make). All translate the same batch of random ids into outputs of a fixed length, so that it does not matter what the
weights say; output tokens are counted once a sentence, whatever the beam. (CTranslate2 is spared one step in
--length + 1: it does not score the final `</s>`.) Every row runs in a process of its own: the peak of
its resident memory includes Python, and file pages of the weights where an engine maps them.

    python -m benchmarks.inference                                       base size, vocabulary 250,001, 2 threads
    python -m benchmarks.inference --preset tiny --vocabulary 1000       seconds: is everything in order?
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.recording import ROOT, parser, report
from deltalm_ds.checkpoints.directory import read_config
from deltalm_ds.export.formats import load_format
from deltalm_ds.files import write_json
from deltalm_ds.generation.engines.ctranslate2 import CTranslate2Engine
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import Engine, Ids, SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import EOS_ID, PAD_ID

ROWS = (
    "pytorch-float32",  # the one that the others are compared with
    "pytorch-bfloat16",
    "ctranslate2-float32",
    "ctranslate2-bfloat16",
    "ctranslate2-int8",
    "onnx-float32",
    "onnx-int8",
    "huggingface-float32",
)
BEAMS = (1, 5)
MEDIAN_LENGTH, LENGTH_SPREAD, MAX_LENGTH = 24, 0.45, 100  # of the sources: log-normal, as those of news

Search = Callable[[Sequence[Ids], SearchOptions], list[int]]  # gives the lengths of the outputs, without `</s>`


def main() -> None:
    """Export, run every row, and show the table."""
    options = parser(__doc__)
    options.add_argument("--rows", default=",".join(ROWS), help="which rows, comma-separated")
    options.add_argument("--preset", default="base", help="size of the model")
    options.add_argument("--vocabulary", type=int, default=250_001, help="its ids")
    options.add_argument("--sentences", type=int, default=16, help="in the batch")
    options.add_argument("--length", type=int, default=32, help="tokens of every output")
    options.add_argument("--repeats", type=int, default=3, help="timed runs, of which the median counts")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="of every engine")
    options.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # a directory, and "export" or row:beam
    arguments = options.parse_args()
    if arguments.worker:
        directory, task = Path(arguments.worker[0]), arguments.worker[1]
        print(json.dumps(_export(arguments, directory) if task == "export" else _measure(arguments, directory, task)))
        return
    (ROOT / "runs").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=ROOT / "runs", prefix="inference.") as exports:
        _run_worker(exports, "export")
        rows = [_run_worker(exports, f"{row}:{beam}") for beam in BEAMS for row in _runnable(arguments)]
    baselines = {row["beam"]: row["tokens/s"] for row in rows if row["engine"] == "pytorch-float32"}
    for row in rows:
        row["ratio"] = round(row["tokens/s"] / baselines[row["beam"]], 2) if row["beam"] in baselines else ""
    title = (
        f"Generation, DeltaLM-{arguments.preset}, vocabulary {arguments.vocabulary:,}: "
        f"{arguments.sentences} sentences, {arguments.length} tokens each, {arguments.threads} threads"
    )
    report(arguments, title, " ".join(["python -m benchmarks.inference", *sys.argv[1:]]), rows)


def _runnable(arguments: argparse.Namespace) -> list[str]:
    """The rows asked for without those that this CPU cannot run as they are."""
    import ctranslate2

    rows = arguments.rows.split(",")
    native = {f"ctranslate2-{dtype}" for dtype in ctranslate2.get_supported_compute_types("cpu")}
    left_out = [row for row in rows if row.startswith("ctranslate2") and row not in native]
    if left_out:
        print(f"left out, as CTranslate2 cannot run it on this CPU: {', '.join(left_out)}", file=sys.stderr)
    return [row for row in rows if row not in left_out]


def _run_worker(directory: str, task: str) -> dict[str, Any]:
    """A task in a process of its own; its result is shown as it comes."""
    command = [sys.executable, "-m", "benchmarks.inference", *sys.argv[1:], "--worker", directory, task]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    print(output.splitlines()[-1], file=sys.stderr, flush=True)
    return json.loads(output.splitlines()[-1])


def _export(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Write one model in every format that a row needs; returns the seconds that each took."""
    torch.manual_seed(0)
    config = DeltaLMConfig.preset(arguments.preset, vocabulary_size=arguments.vocabulary)
    model = DeltaLM(config).eval()
    seconds = {}
    for row in _runnable(arguments):
        start = time.perf_counter()
        form, precision = row.split("-")
        (directory / row).mkdir()
        _writer(form)(model, None, directory / row, precision)
        if form != "pytorch":
            sizes = {"vocabulary_size": config.vocabulary_size, "max_positions": config.max_positions}
            write_json(directory / row / "deltalm.json", {"format": form, "precision": precision, **sizes})
        seconds[row] = round(time.perf_counter() - start, 1)
    return seconds


def _writer(form: str) -> Callable[[DeltaLM, None, Path, str], None]:
    return _write_pytorch if form == "pytorch" else load_format(form).write


def _write_pytorch(model: DeltaLM, _: None, directory: Path, precision: str) -> None:
    weights = {name: weight.to(getattr(torch, precision)) for name, weight in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    write_json(directory / "config.json", {"model": model.config.model_dump()})


def _measure(arguments: argparse.Namespace, directory: Path, task: str) -> dict[str, Any]:
    """One row of the table."""
    row, beam = task.split(":")
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    search = _open(directory / row, row, arguments.threads)
    seconds_to_open = time.perf_counter() - start
    sources = _sources(arguments.sentences, arguments.vocabulary)
    length = arguments.length
    search(sources[:2], SearchOptions(int(beam), max_length=2))  # what is done once
    options = SearchOptions(int(beam), min_length=length, max_length=length)
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        lengths = search(sources, options)
        seconds.append(time.perf_counter() - start)
        assert lengths == [length] * len(sources), f"{row} does other work than was asked for"
    median = sorted(seconds)[len(seconds) // 2]
    return {
        "engine": row,
        "beam": int(beam),
        "tokens/s": round(len(sources) * length / median, 1),
        "seconds": round(median, 2),
        "spread": round((max(seconds) - min(seconds)) / median, 3),
        "seconds to open": round(seconds_to_open, 1),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "file GiB": round(sum(file.stat().st_size for file in (directory / row).iterdir()) / 2**30, 2),
    }


def _open(directory: Path, row: str, threads: int) -> Search:
    """What searches a batch as the engine does it by itself: without the scores that ours add to its hypotheses."""
    if row.startswith("huggingface"):
        return _open_transformers(directory)
    if row == "pytorch-bfloat16":
        return _open_bfloat16(directory)
    engine = load_engine(directory, threads=threads)
    if isinstance(engine, CTranslate2Engine):
        return lambda sources, options: [len(found.hypotheses[0]) for found in engine.search(sources, options)]
    return _searching(engine)


def _searching(engine: Engine) -> Search:
    return lambda sources, options: [len(found[0].ids) for found in engine.generate(sources, options)]


def _open_bfloat16(directory: Path) -> Search:
    """Our model in the precision of its file: `load_model` makes it float32."""
    with torch.device("meta"):
        model = DeltaLM(read_config(directory))
    model.load_state_dict(load_file(directory / "model.safetensors"), assign=True)
    return _searching(PyTorchEngine(model))


def _open_transformers(directory: Path) -> Search:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True).eval()

    @torch.inference_mode()
    def search(sources: Sequence[Ids], options: SearchOptions) -> list[int]:
        longest = max(map(len, sources)) + 1
        ids = torch.tensor([[*source, EOS_ID] + [PAD_ID] * (longest - len(source) - 1) for source in sources])
        outputs = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD_ID).long(),
            num_beams=options.beam,
            early_stopping=options.beam > 1,
            min_new_tokens=options.min_length,
            max_length=options.max_length + 2,  # `</s>` at both ends
        )
        return [outputs.shape[1] - 2] * len(outputs)

    return search


def _sources(num_sentences: int, vocabulary_size: int) -> list[list[int]]:
    """Random ids in lengths like those of real sentences, the same in every row."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), LENGTH_SPREAD, num_sentences)).clip(1, MAX_LENGTH).astype(int)
    return [rng.integers(4, vocabulary_size, length).tolist() for length in lengths]


if __name__ == "__main__":
    main()
