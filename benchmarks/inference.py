"""Generation by every engine at one size, in one run: `make bench-inference`, or with --record.

A model with seeded random weights is exported to every engine's format without the parity check (which other tests
make). All translate the same batch of random ids into outputs of a fixed length, so that it does not matter what the
weights say; output tokens are counted once a sentence, whatever the beam. (CTranslate2 is spared one step in
--length + 1: it does not score the final `</s>`.) Every row runs in a process of its own: the peak of
its resident memory includes Python, and file pages of the weights where an engine maps them. All rows are on one
device, the GPU where there is one, with memory the GPU's; what cannot run there is a row that says why. Our own rows
have the roofline of their search beside them (inference_roofline.py). Threads of our engines wait as those of our
entry points do, others as they do by themselves.

    python -m benchmarks.inference                                       base size, vocabulary 250,001, 2 threads
    python -m benchmarks.inference --preset tiny --vocabulary 1000       seconds: is everything in order?
    python -m benchmarks.inference --profile                             where the time of our search goes
    python -m benchmarks.inference --neighbours 2                        each row alone and beside 2 spinning programs
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.device import DEVICE, ON_GPU, TOY, failure, wait
from benchmarks.inference_profile import profile, rows_of_stages
from benchmarks.inference_roofline import NOTE, roofline
from benchmarks.neighbours import SPIN, running
from benchmarks.recording import FAILED, ROOT, keep, parser, report, row_of_process
from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.checkpoints.directory import read_config
from deltalm_ds.export.formats import load_format
from deltalm_ds.files import write_json
from deltalm_ds.generation.engines.pytorch import engine_of_frozen
from deltalm_ds.generation.interface import Engine, Ids, SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model
from deltalm_ds.threads import SET_BY_USERS, WAITING, threads_to_take
from deltalm_ds.token_ids import EOS_ID, PAD_ID

CPU_ROWS = (
    "pytorch-float32",  # the one that the others are compared with
    "pytorch-bfloat16",
    "ctranslate2-float32",
    "ctranslate2-bfloat16",
    "ctranslate2-int8",
    "onnx-float32",
    "onnx-int8",
    "huggingface-float32",
)
GPU_ROWS = ("pytorch-bfloat16", "huggingface-bfloat16", "ctranslate2-float16", "pytorch-float32")
TOY_ROWS = ("pytorch-float32", "huggingface-bfloat16")
ROWS, SENTENCES = (TOY_ROWS, 2) if TOY else (GPU_ROWS, 64) if ON_GPU else (CPU_ROWS, 16)
BEAMS = (5,) if TOY else (5, 1) if ON_GPU else (1, 5)  # on a GPU first what a goal is set for
ROW_LIMIT_S = 60.0  # on a GPU, whose time is short
NEIGHBOURS_LIMIT_S = 150.0  # of a row beside neighbours, where an engine may come to a stand
OURS = ("pytorch", "onnx")  # engines whose threads are ours
MEDIAN_LENGTH, LENGTH_SPREAD, MAX_LENGTH = 24, 0.45, 100  # of the sources: log-normal, as those of news
NEIGHBOURS_NOTE = (
    "Each neighbour is a Python loop at the same priority. Where all threads share alike, a program with one on every "
    "core keeps cores / (cores + neighbours) of its speed alone. Ours take the threads that their entry points take."
)

Search = Callable[[Sequence[Ids], SearchOptions], list[int]]  # gives the lengths of the outputs, without `</s>`


def main() -> None:
    """Export, run every row, and show the table."""
    arguments = _arguments()
    if arguments.worker:
        directory, task = Path(arguments.worker[0]), arguments.worker[1]
        print(json.dumps(_export(arguments, directory) if task == "export" else _measure(arguments, directory, task)))
        return
    names = [name for name in arguments.rows.split(",") if name.startswith("pytorch") or not arguments.profile]
    (ROOT / "runs").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=ROOT / "runs", prefix="inference.") as exports:
        failed = run_worker(sys.argv[1:], exports, "export")
        rows = [
            keep(arguments, "generation", row)
            for beam in BEAMS
            for name in names
            for row in _rows(arguments, exports, name, beam, failed.get(name, failed.get(FAILED)))
        ]
    _compare(rows)
    what = "Where the time of generation goes" if arguments.profile else "Generation"
    beside = f" beside {arguments.neighbours} spinning programs" if arguments.neighbours else ""
    title = (
        f"{what} on {DEVICE.type}{beside}, DeltaLM-{arguments.preset}, vocabulary {arguments.vocabulary:,}: "
        f"{arguments.sentences} sentences, {arguments.length} tokens each, {arguments.threads} threads"
    )
    notes = [NEIGHBOURS_NOTE if arguments.neighbours else NOTE]
    report(arguments, title, " ".join(["python -m benchmarks.inference", *sys.argv[1:]]), rows, notes)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--rows", default=",".join(ROWS), help="which rows, comma-separated")
    options.add_argument("--preset", default="tiny" if TOY else "base", help="size of the model")
    options.add_argument("--vocabulary", type=int, default=1000 if TOY else 250_001, help="its ids")
    options.add_argument("--sentences", type=int, default=SENTENCES, help="in the batch")
    options.add_argument("--length", type=int, default=4 if TOY else 32, help="tokens of every output")
    options.add_argument("--repeats", type=int, default=1 if TOY else 3, help="timed runs, of which the median counts")
    options.add_argument("--threads", type=int, default=1 if TOY else os.cpu_count(), help="of every engine")
    options.add_argument("--profile", action="store_true", help="the stages of our search, on a CPU; no other rows")
    options.add_argument("--neighbours", type=int, default=0, help="programs that spin, beside each row once more")
    options.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # a directory, and "export" or row:beam
    arguments = options.parse_args()
    if arguments.profile and ON_GPU:
        options.error("--profile tells times of this process, which are not those of a GPU's kernels")
    return arguments


def _rows(
    arguments: argparse.Namespace, directory: str, name: str, beam: int, failed: str | None
) -> Iterator[dict[str, Any]]:
    """What there is of an engine and a beam: one row, with neighbours two, in a profile one a stage."""
    for num in sorted({0, arguments.neighbours}):
        row: dict[str, Any] = {"engine": name, "beam": beam} | ({"neighbours": num} if arguments.neighbours else {})
        found = {FAILED: failed} if failed else run_worker(sys.argv[1:], directory, f"{name}:{beam}", num)
        for part in found.pop("stages", [found]):
            yield row | part


def run_worker(options: Sequence[str], directory: str, task: str, neighbours: int = 0) -> dict[str, Any]:
    """A task in a process of its own, beside as many neighbours."""
    command = ["-m", "benchmarks.inference", *options, "--worker", directory, task]
    limit = ROW_LIMIT_S if ON_GPU else NEIGHBOURS_LIMIT_S if neighbours else None
    set_by_user = any(name in os.environ for name in SET_BY_USERS)
    variables = WAITING if task.startswith(OURS) and not set_by_user else {}
    with running((SPIN,) * neighbours):
        return row_of_process(command, limit, **variables)


def _compare(rows: list[dict[str, Any]]) -> None:
    """Add each row's speed beside that of our float32 row, and beside its own without neighbours."""

    def key(row: dict[str, Any], **other: Any) -> tuple[Any, ...]:
        return tuple((row | other).get(name) for name in ("engine", "beam", "neighbours"))

    speeds = {key(row): row["tokens/s"] for row in rows if "tokens/s" in row}
    for row in rows:
        for column, other in (
            ("ratio", key(row, engine="pytorch-float32")),
            ("of alone", key(row, neighbours=0) if row.get("neighbours") else None),
        ):
            if "tokens/s" in row and other in speeds:
                row[column] = round(row["tokens/s"] / speeds[other], 2)


def _export(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Write one model in every format that a row needs; returns the rows that cannot run, with the reason."""
    torch.manual_seed(0)
    config = DeltaLMConfig.preset(arguments.preset, vocabulary_size=arguments.vocabulary)
    model = DeltaLM(config).eval()
    failed = {}
    for row in arguments.rows.split(","):
        form, precision = row.split("-")
        try:
            _check(form, precision)
            (directory / row).mkdir()
            _writer(form)(model, None, directory / row, precision)
        except Exception as error:  # a package that is missing, or what it says of this device
            failed[row] = failure(error)
            continue
        if form != "pytorch":
            sizes = {"vocabulary_size": config.vocabulary_size, "max_positions": config.max_positions}
            write_json(directory / row / "deltalm.json", {"format": form, "precision": precision, **sizes})
    return failed


def _check(form: str, precision: str) -> None:
    """Raise RuntimeError where an engine cannot run on the device as it is, before anything is written."""
    if form == "onnx" and ON_GPU:
        raise RuntimeError("our engine for ONNX runs on a CPU only")
    if form == "ctranslate2":
        import ctranslate2

        if precision not in ctranslate2.get_supported_compute_types(DEVICE.type):
            raise RuntimeError(f"CTranslate2 does not compute in {precision} on this {DEVICE.type}")


def _writer(form: str) -> Callable[[DeltaLM, None, Path, str], None]:
    return _write_pytorch if form == "pytorch" else load_format(form).write


def _write_pytorch(model: DeltaLM, _: None, directory: Path, precision: str) -> None:
    weights = {name: weight.to(getattr(torch, precision)) for name, weight in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    write_json(directory / "config.json", {"model": model.config.model_dump()})


def _measure(arguments: argparse.Namespace, directory: Path, task: str) -> dict[str, Any]:
    """One row of the table, or its stages."""
    row, beam = task.split(":")
    threads = arguments.threads
    if arguments.neighbours and row.startswith(OURS):
        threads = threads_to_take() or threads
    torch.set_num_threads(threads)
    start = time.perf_counter()
    search = _open(directory / row, row, threads)
    seconds_to_open = time.perf_counter() - start
    sources = _sources(arguments.sentences, arguments.vocabulary)
    length, num_steps = arguments.length, arguments.length + 1
    search(sources[:2], SearchOptions(int(beam), max_length=2))  # what is done once
    options = SearchOptions(int(beam), min_length=length, max_length=length)

    def run() -> None:
        lengths = search(sources, options)
        wait()
        assert lengths == [length] * len(sources), f"{row} does other work than was asked for"

    if arguments.profile:
        run()
        stages = profile(run, arguments.repeats)
        return {"stages": rows_of_stages(stages, _roofline(directory / row, row, sources, options), num_steps)}
    seconds = [_seconds(run) for _ in range(arguments.repeats)]
    median = sorted(seconds)[len(seconds) // 2]
    found = {
        "tokens/s": round(len(sources) * length / median, 1),
        "seconds": round(median, 3),
        "ms a step": round(median / num_steps * 1e3, 2),
        "spread": round((max(seconds) - min(seconds)) / median, 3),
        "seconds to open": round(seconds_to_open, 1),
        "peak GiB": round(_peak_gib(), 2),
        "file GiB": round(sum(file.stat().st_size for file in (directory / row).iterdir()) / 2**30, 2),
    }
    if arguments.neighbours:
        return found | {"threads": threads}
    if row.startswith("pytorch"):
        least = sum(_roofline(directory / row, row, sources, options).values())
        found |= {"roofline ms a step": round(least * 1e3, 2), "x roofline": round(median / num_steps / least, 2)}
    return found


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _roofline(directory: Path, row: str, sources: Sequence[Ids], options: SearchOptions) -> dict[str, float]:
    lengths = [len(source) + 1 for source in sources]
    dtype = getattr(torch, row.removeprefix("pytorch-"))
    return roofline(read_config(directory), dtype, lengths, options.beam, options.min_length)


def _peak_gib() -> float:
    """Resident memory; on a GPU all of its memory that is in use, as every engine keeps what it once had."""
    if ON_GPU:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _open(directory: Path, row: str, threads: int) -> Search:
    """What searches a batch as the engine does it by itself: without the scores that ours add to its hypotheses."""
    if row.startswith("huggingface"):
        return _open_transformers(directory)
    if row.startswith("pytorch"):
        return _open_pytorch(directory)
    engine = load_engine(directory, threads=threads)
    if not row.startswith("ctranslate2"):
        return _searching(engine)
    if engine.translator.device != DEVICE.type:
        raise RuntimeError(f"CTranslate2 was opened on the {engine.translator.device}, and not on the {DEVICE.type}")
    return lambda sources, options: [len(found.hypotheses[0]) for found in engine.search(sources, options)]


def _searching(engine: Engine) -> Search:
    return lambda sources, options: [len(found[0].ids) for found in engine.generate(sources, options)]


def _open_pytorch(directory: Path) -> Search:
    """Our model in the precision of its file."""
    model = empty_model(read_config(directory))
    model.load_state_dict(load_file(directory / "model.safetensors"), assign=True)
    if not ON_GPU:
        keep_freed_memory(in_large_pages=True)
    return _searching(engine_of_frozen(model.to(DEVICE)))


def _open_transformers(directory: Path) -> Search:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True, dtype="auto").to(DEVICE).eval()

    @torch.inference_mode()
    def search(sources: Sequence[Ids], options: SearchOptions) -> list[int]:
        longest = max(map(len, sources)) + 1
        rows = [[*source, EOS_ID] + [PAD_ID] * (longest - len(source) - 1) for source in sources]
        ids = torch.tensor(rows, device=DEVICE)
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
