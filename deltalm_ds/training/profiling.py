"""A window of steps under torch.profiler, as a trace that Perfetto and TensorBoard open."""

import sys
from pathlib import Path
from typing import Any

import torch

from deltalm_ds.errors import os_error_sentence
from deltalm_ds.recipe.training_section import ProfileSection
from deltalm_ds.training.sections import Sections

PROFILE = "profile"  # of a run directory


class Profiler:
    """Records the steps that a recipe names, once they are all made, to RUN/profile/.

    A trace that cannot be written is a warning: training does not need it.

    Args:
        run: the run directory.
        window: which steps, on which ranks; None for none.
        rank: this one.
        sections: whose names the trace has.
    """

    def __init__(self, run: Path, window: ProfileSection | None, rank: int, sections: Sections) -> None:
        self._directory, self._rank, self._sections = run / PROFILE, rank, sections
        self._window = window if window is not None and (rank == 0 or window.ranks == "all") else None
        self._profile: Any = None

    def before(self, step: int) -> None:
        """A step, counted from 0, is about to be made."""
        if self._window is not None and self._profile is None and step == self._window.start_step:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.start()
            self._sections.is_profiled = True

    def after(self, step: int) -> None:
        """A step has been made: at the last one of the window the trace is written."""
        if self._profile is None or self._window is None or step + 1 < self._window.start_step + self._window.num_steps:
            return
        profile, self._profile, self._window = self._profile, None, None
        self._sections.is_profiled = False
        profile.stop()
        try:
            self._directory.mkdir(exist_ok=True)
            path = self._directory / f"rank{self._rank}_step{step}.pt.trace.json.gz"
            temporary = path.with_name(f".{path.name}.tmp.json.gz")
            profile.export_chrome_trace(str(temporary))
            temporary.rename(path)
        except OSError as error:
            print(f"The profile of steps up to {step} is lost: {os_error_sentence(error)}", file=sys.stderr)
