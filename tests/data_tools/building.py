"""Text to build shards of, and what a build left."""

import subprocess
import sys

import numpy as np

from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools.build import CorpusSpec
from deltalm_ds.data_tools.sources import TextSource

TEXT = "the cat sees a small dog and the dog sees a big cat near old green trees by blue water"


def sentences(num_lines, seed, longest=12):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(TEXT.split(), size)) for size in random.integers(1, longest, num_lines)]


def mono_spec(tmp_path, lines):
    path = tmp_path / "mono.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return [CorpusSpec.from_name("de", [TextSource((path,))])]


def all_rows(directory):
    corpora = ShardDataset.open(directory).corpora
    return {
        (name, side): [row.tolist() for row in corpus.tokens(side, np.arange(corpus.num_rows))]
        for name, corpus in corpora.items()
        for side in corpus.sides
    }


def content_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


SLOW_BUILD = """
import sys, time
from pathlib import Path
from deltalm_ds import files
from deltalm_ds.data_tools import build as b
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.workers import start_workers
from deltalm_ds.vocabulary import Vocabulary
fsync = files.fsync_path
files.fsync_path = lambda path: (time.sleep(0.02), fsync(path))
if __name__ == "__main__":
    w = Path(sys.argv[1])
    specs = [b.CorpusSpec.from_name("en-de", [TextSource((w / "train.en", w / "train.de"))]),
             b.CorpusSpec.from_name("de", [TextSource((w / "mono.de.gz",))])]
    with start_workers(int(sys.argv[3])) as workers:
        print("starting", flush=True)
        b.build(specs, Vocabulary.load(w / "vocab"), sys.argv[2], b.Settings(rows_per_shard=20), workers)
"""


def start_slow_build(workspace, out, num_processes=1):
    script = workspace / "slow_build.py"
    script.write_text(SLOW_BUILD)
    command = [sys.executable, str(script), str(workspace), str(out), str(num_processes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"starting\n"
    return process
