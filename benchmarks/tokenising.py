"""Building shards against SentencePiece and Hugging Face `tokenizers` on the same text: `make bench-tokenising`.

The text is ../shared/data/mono (132 languages), cut or repeated to a size; the vocabulary is trained on it and kept
in runs/tokenising. Ours is the whole build: read, check, encode, write, publish. SentencePiece's row is `encode` of
lines that are in memory already, to lists of ids (one thread, its fastest way in Python): reading and writing cost it
nothing. `spm_encode` is that program (Debian's package `sentencepiece`), which reads lines and writes ids as
text; where it is missing, the same is done through the library.
`tokenizers` gets the lines in memory and a tokenizer made of the same model, and, being slow, every tenth line.

    python -m benchmarks.tokenising                    100 MB side by side, builds of 3, 30 and 300 MB; best of 2 rounds
    python -m benchmarks.tokenising --megabytes 1000   the full run: 1,000 MB, and 30, 300 and 3,000 MB

Rows are compared by their tokens a second of wall time, and of CPU time where the machine has other work. Two processes
of SentencePiece alone are the most that a second process can give here. Memory is that of the first process.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from deltalm_ds.data_tools.build import CorpusSpec, build
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.train_vocabulary import train
from deltalm_ds.data_tools.workers import start_workers
from deltalm_ds.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "mono" / "mono.tar.xz"
WORK = ROOT / "runs" / "tokenising"
PIECES = 32_000
BATCH_LINES = 4096
PEERS = ("sentencepiece", "spm_encode", "tokenizers")
GROWTH = (0.03, 0.3, 3)  # sizes of builds, as shares of the text that all read
LINE_STEP = {"tokenizers": 10}  # it reads one line of so many

Encode = Callable[[list[str]], list[list[int]]]


def main() -> None:
    """Run every row in its own processes, round by round, and show the best of each."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(_measure(*sys.argv[2].split(":"))))
        return
    # Not at the top: it imports torch, and every process of a build would too.
    from benchmarks.recording import parser, report

    options = parser(__doc__)
    options.add_argument("--megabytes", type=float, default=100, help="of text in the comparison")
    options.add_argument("--rounds", type=int, default=2, help="how often everything is measured")
    arguments = options.parse_args()
    if not DATA.is_file():
        sys.exit(f"{DATA} is not there: this benchmark needs the monolingual corpora.")
    text = _text(round(arguments.megabytes * 1e6))
    _train_vocabulary(_text(30_000_000))
    sizes = [f"ours:{_text(round(arguments.megabytes * 1e6 * share))}:{n}" for share in GROWTH for n in (1, 2)]
    keys = [*(f"{what}:{text}:{n}" for n in (1, 2) for what in ("ours", *PEERS)), *sizes]
    measured: dict[str, list[dict[str, float]]] = {key: [] for key in keys}
    for _ in range(arguments.rounds):
        for key in keys:
            measured[key].append(_run(key))
    best = {key: min(results, key=lambda result: result["wall"]) for key, results in measured.items()}
    report(
        arguments,
        f"Tokenising: {PIECES:,} pieces, 132 languages, best of {arguments.rounds}",
        f"python -m benchmarks.tokenising --megabytes {arguments.megabytes:g}",
        [_row(key, best) for key in keys],
    )


def _row(key: str, best: dict[str, dict[str, float]]) -> dict[str, Any]:
    what, path, processes = key.split(":")
    result = best[key]
    raw, one = best.get(f"sentencepiece:{path}:{processes}"), best.get(f"{what}:{path}:1")

    def times(other: dict[str, float], clock: str) -> str:
        return f"{(result['tokens'] / result[clock]) / (other['tokens'] / other[clock]):.2f}"

    return {
        "what": what,
        "text MB": round(Path(path).stat().st_size / 1e6, 1),
        "processes": int(processes),
        "tokens": int(result["tokens"]),
        "s": result["wall"],
        "tokens/s": result["tokens"] / result["wall"],
        "CPU s": result["cpu"],
        "× SentencePiece (CPU)": times(raw, "cpu") if raw and processes == "1" else "",
        "× SentencePiece (wall)": times(raw, "wall") if raw else "",
        "× one process": times(one, "wall") if one and processes != "1" else "",
        "bytes a token": f"{result['bytes'] / result['tokens']:.2f}" if result["bytes"] else "",
        "peak MB": round(result["peak_mb"]),
    }


def _text(num_bytes: int) -> Path:
    """A file of so much text, all languages by turns; made once."""
    path = WORK / f"text.{num_bytes}.txt"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        with tarfile.open(DATA) as archive:
            members = [archive.extractfile(member) for member in archive if member.name.endswith(".txt")]
            lines = [file.read().splitlines(keepends=True) for file in members if file]
        longest = max(map(len, lines))
        by_turns = b"".join(of_language[i] for i in range(longest) for of_language in lines if i < len(of_language))
        whole = by_turns * (num_bytes // len(by_turns) + 1)
        path.write_bytes(whole[: whole.index(b"\n", num_bytes) + 1])
    return path


def _train_vocabulary(text: Path) -> None:
    if not (WORK / "vocabulary").exists():
        train([text], WORK / "vocabulary", PIECES, max_lines=100_000)


# --- the workers ---


def _run(key: str) -> dict[str, float]:
    """One row; two processes of a peer are two workers, each with half of the lines."""
    what, path, processes = key.split(":")
    num_workers = int(processes) if what in PEERS else 1
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    workers = []
    for index in range(num_workers):
        share = f"{index}/{num_workers * LINE_STEP.get(what, 1)}" if what in PEERS else processes
        command = [sys.executable, "-m", "benchmarks.tokenising", "--worker", f"{what}:{path}:{share}"]
        workers.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
            )
        )
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()  # it is ready
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    results = [json.loads(worker.communicate()[0]) for worker in workers]
    result = {name: sum(found[name] for found in results) for name in ("tokens", "cpu", "bytes")}
    return result | {name: max(found[name] for found in results) for name in ("wall", "peak_mb")}


def _measure(what: str, path: str, share: str) -> dict[str, float]:
    """Get ready, say so, wait for the start, and measure."""
    run = _prepare_build(path, int(share)) if what == "ours" else _prepare_peer(what, path, share)
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.monotonic(), _cpu_seconds()
    num_tokens, num_bytes = run()
    wall, cpu = time.monotonic() - wall, _cpu_seconds() - cpu
    return {"tokens": num_tokens, "bytes": num_bytes, "wall": wall, "cpu": cpu, "peak_mb": _peak_mb()}


def _cpu_seconds() -> float:
    """Of this process and of those it started and saw end."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_mb() -> float:
    """Of this program; `ru_maxrss` also counts what the process was before it became this program."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _prepare_build(path: str, num_processes: int) -> Callable[[], tuple[int, int]]:
    vocabulary = Vocabulary.load(WORK / "vocabulary")
    vocabulary.encode("")
    opened = start_workers(num_processes)
    workers = opened.__enter__()
    assert workers is not None
    for _ in workers.run(time.sleep, [3.0] * num_processes):  # all are running before the clock starts
        pass

    def run() -> tuple[int, int]:
        with tempfile.TemporaryDirectory(dir=WORK) as directory:
            spec = CorpusSpec.from_name("mul", [TextSource((Path(path),))])
            (corpus,) = build([spec], vocabulary, Path(directory) / "shards", Settings(), workers).corpora
        opened.__exit__(None, None, None)
        return corpus.num_tokens["source"], corpus.num_bytes

    return run


def _prepare_peer(what: str, path: str, share: str) -> Callable[[], tuple[int, int]]:
    index, number = map(int, share.split("/"))
    vocabulary = Vocabulary.load(WORK / "vocabulary")
    encode = _tokenizers(vocabulary) if what == "tokenizers" else _sentencepiece()
    encode(["a"])
    batches = list(_batches(path, index, number))
    if what == "spm_encode":
        program = shutil.which("spm_encode")
        return _prepare_program(program, batches, encode) if program else lambda: (_write_ids(batches, encode), 0)
    return lambda: (sum(sum(map(len, encode(batch))) for batch in batches), 0)


def _prepare_program(program: str, batches: list[list[str]], encode: Encode) -> Callable[[], tuple[int, int]]:
    """spm_encode on these lines; their tokens are counted beforehand."""
    num_tokens = sum(sum(map(len, encode(batch))) for batch in batches)
    directory = tempfile.TemporaryDirectory(dir=WORK)
    text = Path(directory.name, "text")
    text.write_text("".join(f"{line}\n" for batch in batches for line in batch), encoding="utf-8")
    command = [program, f"--model={WORK / 'vocabulary' / 'spm.model'}", "--output_format=id"]
    command += [f"--input={text}", f"--output={directory.name}/ids"]

    def run() -> tuple[int, int]:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        directory.cleanup()
        return num_tokens, 0

    return run


def _batches(path: str, index: int, number: int) -> Iterator[list[str]]:
    """Every `number`-th line."""
    with open(path, encoding="utf-8", newline="\n") as file:
        lines = (line.rstrip("\n") for line in islice(file, index, None, number))
        while batch := list(islice(lines, BATCH_LINES)):
            yield batch


def _sentencepiece() -> Encode:
    processor = SentencePieceProcessor(model_file=str(WORK / "vocabulary" / "spm.model"))
    return partial(processor.encode, num_threads=1)


def _tokenizers(vocabulary: Vocabulary) -> Encode:
    from deltalm_ds.export.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(vocabulary)
    return lambda batch: [row.ids for row in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]


def _write_ids(batches: list[list[str]], encode: Encode) -> int:
    num_tokens = 0
    with tempfile.TemporaryFile("w", dir=WORK) as out:
        for batch in batches:
            for ids in encode(batch):
                num_tokens += len(ids)
                out.write(" ".join(map(str, ids)) + "\n")
    return num_tokens


if __name__ == "__main__":
    main()
