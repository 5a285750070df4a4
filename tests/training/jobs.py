"""What a test asks of ranks; see `run_on_ranks`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A training: in directory `run`, from the first checkpoint of `resumes`, with a fault that ranks.py knows."""

    run: Path
    resumes: Path | None = None
    fault: str | None = None
