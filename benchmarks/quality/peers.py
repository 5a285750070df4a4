"""Ours beside the peers, on the same data for the same seconds on the same machine: `make bench-quality/peers`.

Multi30k En→De, raw and cased, one vocabulary of 6,000 pieces, models of equal size, equal tokens a step, the same
learning rates (peak, warm-up, inverse square root: no schedule that knows its end). Hugging Face's Trainer and Eole are
fetched from the package index into environments of their own in runs/peers. Every row trains for the largest of
--seconds from the command on, imports included, and is then stopped; each of its checkpoints is judged in nats a target
token (the same tokens for all, `</s>` included, without label smoothing), and the newest at each of --seconds by BLEU.

    python -m benchmarks.quality.peers --seconds 300,900      every row; stopped, it goes on with the rows not yet done
    python -m benchmarks.quality.peers --pinned               one core and one thread a row, as many rows at once as
                                                              there are cores: fair on a machine that is not quiet
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality import multi30k
from benchmarks.quality.peers_running import WORK, Row, environment, python_of, train_for
from benchmarks.quality.peers_systems import System, Training, system_of
from benchmarks.quality.study import Study
from benchmarks.recording import ROOT, keep, parser, report
from deltalm_ds.files import read_json, write_json

ROWS = {
    "deltalm-2": Row("deltalm", Training(processes=2, bf16=True)),
    "deltalm": Row("deltalm", Training(bf16=True)),
    "deltalm-2-fp32": Row("deltalm", Training(processes=2)),
    "deltalm-fp32": Row("deltalm"),
    "huggingface": Row("huggingface"),
    "huggingface-kept": Row("huggingface", kept=True),
    "huggingface-bf16-kept": Row("huggingface", Training(bf16=True), kept=True),
    "huggingface-2-kept": Row("huggingface", Training(processes=2), kept=True),
    "eole": Row("eole"),
    "eole-kept": Row("eole", kept=True),
    "eole-bf16-kept": Row("eole", Training(bf16=True), kept=True),
}
NOTE = (
    "-2: two processes of one thread each, else one of as many threads as cores; kept: with our allocator's "
    "settings, which the peers' users do not have by themselves; fp32, bf16: the precision by each system's own "
    "means (where nothing is said, ours bf16, the peers fp32). Seconds count from the command; of Hugging Face's "
    "first, some go into reading all ids as lists. tokens/s: target tokens with `</s>`, no pads, median of "
    "intervals of 50 steps; peak GiB: proportional set size of all processes; nats: a target token of the "
    "validation, without smoothing; BLEU: sacreBLEU 13a, test 2016, beam 5, one checkpoint, not averaged."
)
PINNED_NOTE = " Pinned: one core and one thread a row, while its neighbour in the order of the rows had the other core."


def main() -> None:
    """Train and judge every row that is not done, and show the table."""
    options = parser(__doc__)
    options.add_argument("--seconds", default="300", help="budgets, comma-separated; every row trains for the largest")
    options.add_argument("--rows", help="which rows, comma-separated; by default all, pinned those of one process")
    options.add_argument("--pinned", action="store_true", help="a core a row, as many rows at once as there are cores")
    options.add_argument("--nats", default="3,2.5", help="validation losses, the seconds to which are shown")
    options.add_argument("--judge", nargs=3, metavar=("SYSTEM", "OUT", "STARTED"), help="used internally")
    arguments = options.parse_args()
    budgets = sorted(map(int, arguments.seconds.split(",")))
    if arguments.judge:
        system, out, started = arguments.judge
        print(json.dumps(_judge(system_of(system), Path(out), float(started), budgets)))
        return
    able = [name for name, row in ROWS.items() if row.training.processes == 1 or not arguments.pinned]
    names = arguments.rows.split(",") if arguments.rows else able
    if unknown := set(names) - set(able):
        options.error(f"--rows: there is no {', '.join(sorted(unknown))}; there are {', '.join(able)}")
    multi30k.prepare(Study("multi30k"), "de")
    at_once = len(os.sched_getaffinity(0)) if arguments.pinned else 1
    results = WORK / f"{arguments.seconds.replace(',', '-')}{'-pinned' * arguments.pinned}"
    for start in range(0, len(names), at_once):
        _measure(results, names[start : start + at_once], budgets, arguments.pinned)
    found = {name: read_json(_result(results, name)) for name in names}
    nats = list(map(float, arguments.nats.split(",")))
    rows = [keep(arguments, "peers", {"row": name, **_shown(result, nats)}) for name, result in found.items()]
    title = f"Peers: Multi30k En→De, {arguments.seconds} seconds"
    command = " ".join(["python -m benchmarks.quality.peers", *sys.argv[1:]])
    report(arguments, title, command, rows, [NOTE + PINNED_NOTE * arguments.pinned])


def _result(results: Path, name: str) -> Path:
    return results / f"{name}.json"


def _measure(results: Path, names: Sequence[str], budgets: Sequence[int], pinned: bool) -> None:
    """Rows at the same time; where one of them is missing, all are done, as they were to have the same neighbours."""
    if all(_result(results, name).exists() for name in names):
        return
    for name in names:
        shutil.rmtree(results / name, ignore_errors=True)
    trained = train_for({results / name: ROWS[name] for name in names}, budgets[-1], pinned)
    for name, running in zip(names, trained.values(), strict=True):
        judged = subprocess.run(
            [python_of(ROWS[name].system), "-m", "benchmarks.quality.peers", "--seconds", ",".join(map(str, budgets)),
             "--judge", ROWS[name].system, str(running.out), str(running.started)],
            stdout=subprocess.PIPE, text=True, check=True, env=environment(), cwd=ROOT,
        )  # fmt: skip
        measured = {"first_step_s": running.first_step_s, "peak_bytes": running.peak_bytes}
        write_json(_result(results, name), {**measured, **json.loads(judged.stdout.splitlines()[-1])})


# --- judging, in the system's own environment ---


def _judge(system: System, out: Path, started: float, budgets: Sequence[int]) -> dict[str, Any]:
    """What its checkpoints are worth: the curve of validation losses, and BLEU at the end of every budget."""
    from benchmarks.quality.peers_data import test_sources, validation_pairs

    pairs = validation_pairs()
    num_tokens = sum(len(ids) + 1 for ids in pairs.targets)
    written = {
        step: (path / system.marker).stat().st_mtime - started
        for step, path in sorted(system.checkpoints(out).items())
        if (path / system.marker).exists()
    }
    curve, at, num_parameters = [], {}, None
    newest = {budget: max((step for step in written if written[step] <= budget), default=None) for budget in budgets}
    for step, seconds in written.items():
        if seconds > budgets[-1]:
            continue
        model = system.open(system.checkpoints(out)[step])
        curve.append({"seconds": seconds, "step": step, "nats": model.nll(pairs) / num_tokens})
        num_parameters = model.num_parameters
        for budget in [budget for budget in budgets if newest[budget] == step]:
            at[budget] = {**curve[-1], "bleu": _bleu(model.translate(test_sources()))}
    rates = sorted(system.rates(out))
    rate = rates[len(rates) // 2] if rates else None
    return {"parameters": num_parameters, "target_tokens_per_second": rate, "curve": curve, "at": at}


def _bleu(outputs: list[list[int]]) -> float:
    import sacrebleu

    from benchmarks.quality.peers_data import lines, vocabulary

    return sacrebleu.corpus_bleu([vocabulary().decode(ids) for ids in outputs], [lines("test", "de")]).score


# --- showing ---


def _shown(result: dict[str, Any], nats: Sequence[float]) -> dict[str, Any]:
    row = {
        "M parameters": result["parameters"] and result["parameters"] / 1e6,
        "first step s": result["first_step_s"],
        "tokens/s": result["target_tokens_per_second"],
        "peak GiB": result["peak_bytes"] / 2**30,
    }
    for budget, reached in result["at"].items():
        row |= {f"steps in {budget} s": reached["step"], f"nats at {budget} s": reached["nats"]}
        row |= {f"BLEU at {budget} s": reached["bleu"]}
    return row | {f"s to {wanted:g} nats": _seconds_to(wanted, result["curve"]) for wanted in nats}


def _seconds_to(nats: float, curve: Sequence[dict[str, float]]) -> float | str:
    """When the loss was first this low, between two checkpoints on a straight line; `-` where it was not."""
    for before, after in zip([None, *curve], curve, strict=False):
        if after["nats"] <= nats:
            if before is None:
                return after["seconds"]
            part = (before["nats"] - nats) / (before["nats"] - after["nats"])
            return before["seconds"] + part * (after["seconds"] - before["seconds"])
    return "-"


if __name__ == "__main__":
    main()
