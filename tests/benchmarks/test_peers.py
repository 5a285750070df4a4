"""Peers: what is judged is the same for all, budgets of seconds are kept, and processes end."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.quality import peers, peers_data, peers_running
from benchmarks.quality.peers_data import Pairs
from benchmarks.quality.peers_systems import Training

TRAINS = """
import pathlib, subprocess, sys, time
out = pathlib.Path(sys.argv[1])
out.mkdir()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(out / "child").write_text(str(child.pid))
time.sleep(0.3)
(out / "begun").touch()
time.sleep(60)
"""


class StandIn:
    """A system of files: a checkpoint is a directory named for its step, its model as bad as its file says."""

    requirements = ()
    marker = "nats"

    def command(self, out, training):
        return ["-c", TRAINS, str(out)]

    def has_begun(self, out):
        return (out / "begun").exists()

    def checkpoints(self, out):
        return {int(path.name): path for path in out.iterdir()}

    def rates(self, out):
        return [3.0, 1.0, 2.0]

    def open(self, checkpoint):
        class Model:
            num_parameters = 5

            def nll(self, pairs):
                return float((checkpoint / "nats").read_text()) * sum(len(ids) + 1 for ids in pairs.targets)

            def translate(self, sources):
                return [[int(checkpoint.name)] for _ in sources]

        return Model()


def write_checkpoint(out, step, nats, written):
    (out / str(step)).mkdir(parents=True)
    file = out / str(step) / "nats"
    file.write_text(str(nats))
    os.utime(file, (written, written))


def test_each_budget_is_judged_by_its_newest_checkpoint(tmp_path, monkeypatch):
    for step, nats, seconds in ((10, 5.0, 20), (20, 4.0, 40), (30, 3.0, 60), (40, 1.0, 101)):
        write_checkpoint(tmp_path, step, nats, 1000 + seconds)
    (tmp_path / "50").mkdir()  # its training was ended before it was whole
    monkeypatch.setattr(peers_data, "validation_pairs", lambda: Pairs([[4]], [[4, 5]]))
    monkeypatch.setattr(peers_data, "test_sources", lambda: [[4]])
    monkeypatch.setattr(peers, "_bleu", lambda outputs: float(outputs[0][0]))
    found = peers._judge(StandIn(), tmp_path, 1000.0, [45, 100])
    assert {budget: (row["step"], row["bleu"]) for budget, row in found["at"].items()} == {
        45: (20, 20.0),
        100: (30, 30),
    }
    assert [(point["seconds"], point["nats"]) for point in found["curve"]] == [(20, 5), (40, 4), (60, 3)]
    assert found["target_tokens_per_second"] == 2.0


@pytest.mark.parametrize(("nats", "seconds"), [(6.0, 20), (4.5, 30), (4.0, 40), (3.2, 50), (2.0, "-")])
def test_seconds_to_a_loss_lie_on_the_line_between_checkpoints(nats, seconds):
    curve = [{"seconds": s, "nats": n} for s, n in ((20, 5.0), (40, 4.0), (45, 4.2), (55, 2.2))]
    assert peers._seconds_to(nats, curve) == (seconds if seconds == "-" else pytest.approx(seconds))


def test_trainings_run_at_once_for_their_seconds_and_leave_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(peers_running, "system_of", lambda name: StandIn())
    rows = {tmp_path / name: peers_running.Row("stand_in") for name in "ab"}
    before = time.time()
    found = peers_running.train_for(rows, 4.0, pinned=False)
    assert time.time() - before < 20
    for out, running in found.items():
        assert 0.3 < running.first_step_s < 4.0
        assert running.peak_bytes > 2 * 2**20  # of two Pythons
        assert not running.process.is_running()
        assert not psutil.pid_exists(int((out / "child").read_text()))


def test_a_training_that_ends_by_itself_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(peers_running, "system_of", lambda name: StandIn())
    monkeypatch.setattr(StandIn, "command", lambda self, out, training: ["-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="ended with 3"):
        peers_running.train_for({tmp_path / "a": peers_running.Row("stand_in")}, 20.0, pinned=False)


def test_our_allocator_settings_reach_a_peer():
    """A large block is then not mapped anew each time: hardly a page fault for the second and later ones."""
    code = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def take():
    block = libc.malloc(1 << 26)
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take(); take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(subprocess.check_output([sys.executable, "-c", code], env=peers_running.environment(kept)))
        for kept in (False, True)
    ]
    assert faults[0] > 20_000 > 200 > faults[1]


def test_mbart_is_judged_by_every_target_token_and_its_end(tmp_path, monkeypatch):
    import torch
    from transformers import MBartForConditionalGeneration

    from benchmarks.quality import peers_huggingface

    class Vocabulary:
        num_tokens = 40

    monkeypatch.setattr(peers_huggingface, "vocabulary", lambda: Vocabulary)
    monkeypatch.setattr(peers_data, "LONGEST", 8)
    torch.manual_seed(0)
    model = MBartForConditionalGeneration(peers_huggingface._config()).eval()
    model.save_pretrained(tmp_path)
    pairs = Pairs([[4, 5, 6], [7], [8, 9]], [[10], [11, 12, 13, 14], [15, 16]])
    total = 0.0
    for source, target in zip(pairs.sources, pairs.targets, strict=True):  # alone, without pads
        given = torch.tensor([[2, *target]])
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*source, 2]]), decoder_input_ids=given).logits[0]
        total -= logits.log_softmax(-1)[range(len(target) + 1), [*target, 2]].sum().item()
    opened = peers_huggingface.HuggingFace().open(tmp_path)
    assert opened.nll(pairs) == pytest.approx(total, rel=1e-5)
    outputs = opened.translate(pairs.sources)
    assert len(outputs) == 3 and all(2 < token < 40 for ids in outputs for token in ids)


def test_two_processes_of_hugging_face_share_a_step(tmp_path):
    from benchmarks.quality.peers_huggingface import HuggingFace

    command = HuggingFace().command(tmp_path, Training(processes=2, bf16=True))
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-2:] == [str(tmp_path), "bf16"]
