"""A system of `peers`: how it trains, where its checkpoints are, and how one is judged. One is chosen by name."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from benchmarks.quality.peers_data import Ids, Pairs

FIRST_STEP, RATES = "first_step", "rates"  # files that a training leaves beside its checkpoints


@dataclass(frozen=True)
class Training:
    """How one is run: which processes and precision."""

    processes: int = 1
    bf16: bool = False


class Opened(Protocol):
    """A checkpoint, computing in float32."""

    num_parameters: int

    def nll(self, pairs: Pairs) -> float:
        """Nats of all targets and their `</s>` together."""

    def translate(self, sources: list[Ids]) -> list[Ids]:
        """The best hypothesis of each by the system's own beam search and its own defaults beside the beam."""


class System(Protocol):
    """One system."""

    requirements: tuple[str, ...]  # beside our own packages
    marker: str  # the file of a checkpoint that is written last

    def command(self, out: Path, training: Training) -> list[str]:
        """What trains into a directory until it is stopped: arguments of the system's Python."""

    def checkpoints(self, out: Path) -> dict[int, Path]:
        """By step, those that are being written included."""

    def has_begun(self, out: Path) -> bool:
        """Whether the first step has ended."""

    def rates(self, out: Path) -> list[float]:
        """Target tokens (and `</s>`), without pads, a second, of every LOG_EVERY steps."""

    def open(self, checkpoint: Path) -> Opened: ...


SYSTEMS = {"deltalm": "Ours", "huggingface": "HuggingFace", "eole": "Eole"}


def system_of(name: str) -> System:
    found: System = getattr(import_module(f"benchmarks.quality.peers_{name}"), SYSTEMS[name])()
    return found


# --- what a system notes that has no files of this kind ---


class Noting:
    """`has_begun` and `rates` by files beside the checkpoints."""

    def has_begun(self, out: Path) -> bool:
        """See `System.has_begun`."""
        return (out / FIRST_STEP).exists()

    def rates(self, out: Path) -> list[float]:
        """See `System.rates`."""
        return list(map(float, (out / RATES).read_text().split())) if (out / RATES).exists() else []


def note_first_step(out: Path) -> None:
    """From now on, the end of the first step of any of PyTorch's optimizers leaves a file."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def ended(*_: Any) -> None:
        (out / FIRST_STEP).touch()
        handle.remove()

    out.mkdir(parents=True, exist_ok=True)
    handle = register_optimizer_step_post_hook(ended)


def note_rate(out: Path, rate: float) -> None:
    """One more of `System.rates`."""
    with open(out / RATES, "a") as file:
        file.write(f"{rate:.1f}\n")


def checkpoints_named(out: Path, prefix: str) -> dict[int, Path]:
    return {int(path.name.removeprefix(prefix)): path for path in out.glob(f"{prefix}*") if path.is_dir()}
