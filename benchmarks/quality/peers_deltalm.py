"""Our own system in `peers`: `deltalm train` and its checkpoints as any user has them."""

from pathlib import Path

from benchmarks.quality import peers_data as given
from benchmarks.quality.peers_data import Ids, Pairs
from benchmarks.quality.peers_systems import Training
from deltalm_ds.recipe.loading import recipe_path
from deltalm_ds.runs.checkpoints import STATE, checkpoint_directories, step_of
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import read_metrics

ENDLESS = 1_000_000  # steps


class Ours:
    """See `System`."""

    requirements = ()
    marker = STATE

    def command(self, out: Path, training: Training) -> list[str]:
        """See `System.command`."""
        overrides = [
            f"vocabulary={given.VOCABULARY}",
            f"data.train=[{{path: {given.SHARDS}, directions: forward}}]",
            f"schedule={{kind: inverse_sqrt, peak_lr: {given.PEAK_LR}, warmup_steps: {given.WARMUP}}}",
            "validation=null",
            f"training.max_steps={ENDLESS}",
            f"training.save_every={given.SAVE_EVERY}",
            f"training.log_every={given.LOG_EVERY}",
            "training.keep_last=1000",
            "deepspeed=bf16_zero1" if training.bf16 else "deepspeed=fp32_zero1",
        ]
        return self.train(out, training.processes, "multi30k_en_de", overrides)

    def train(self, out: Path, ranks: int, recipe: str, overrides: list[str]) -> list[str]:
        """`deltalm train` as arguments of this Python."""
        words = ["train", str(recipe_path(recipe)), "--out", str(out), "--ranks", str(ranks), *overrides]
        return ["-c", "from deltalm_ds.cli import main; main()", *words]

    def checkpoints(self, out: Path) -> dict[int, Path]:
        """See `System.checkpoints`."""
        return {step_of(path): path for path in checkpoint_directories(out)}

    def has_begun(self, out: Path) -> bool:
        """See `System.has_begun`."""
        return any(event["kind"] == "started" for event in read_events(out))

    def rates(self, out: Path) -> list[float]:
        """See `System.rates`."""
        return [record["target_tokens_per_second"] for record in read_metrics(out) if record["kind"] == "train"]

    def open(self, checkpoint: Path) -> "OurModel":
        """See `System.open`."""
        return OurModel(checkpoint)


class OurModel:
    """See `Opened`."""

    def __init__(self, checkpoint: Path) -> None:
        from deltalm_ds.checkpoints.directory import load_model
        from deltalm_ds.generation.loading import load_engine, load_vocabulary

        self.num_parameters = sum(weight.numel() for weight in load_model(checkpoint).parameters())
        self._engine = load_engine(checkpoint)
        self._tag = load_vocabulary(checkpoint).source_tag("de", None)

    def nll(self, pairs: Pairs) -> float:
        """See `Opened.nll`."""
        from deltalm_ds.generation.score import score

        scores = score(self._engine, [[*self._tag, *ids] for ids in pairs.sources], pairs.targets)
        return -sum(map(sum, scores))

    def translate(self, sources: list[Ids]) -> list[Ids]:
        """See `Opened.translate`."""
        from deltalm_ds.generation.interface import SearchOptions
        from deltalm_ds.generation.translate import generate

        found = generate(self._engine, [[*self._tag, *ids] for ids in sources], SearchOptions(beam=given.BEAM))
        return [list(hypotheses[0].ids) for hypotheses in found]
