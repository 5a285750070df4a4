"""A rank whose run directory does not answer for some seconds: its beats go into a pipe that nobody reads.

Started as `python unanswered_rank.py RUN SECONDS LIMIT`; the seconds count from the first beat on.
"""

import os
import sys
import time
from pathlib import Path

from torch import distributed

from deltalm_ds.recipe.training_section import LimitsSection
from deltalm_ds.runs import silence
from deltalm_ds.runs.beats import beat_path
from deltalm_ds.training.watchdog import watched


def main(run: Path, seconds: float, limit_s: float) -> None:
    silence.SILENT_S = 2.0
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    beats = beat_path(run, 0)
    with watched(run, LimitsSection(step_s=limit_s), 0) as sections:
        sections.begin_step(7)
        sections.switch("forward")
        while not beats.exists():
            time.sleep(0.1)
        beats.unlink()
        os.mkfifo(beats)
        waiting_for_the_disk(seconds)
        os.close(os.open(beats, os.O_RDONLY | os.O_NONBLOCK))
        beats.unlink()
        time.sleep(3.0)


def waiting_for_the_disk(seconds: float) -> None:
    time.sleep(seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
