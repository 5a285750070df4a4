"""Eole (of the makers of OpenNMT) in `peers`: a Transformer of equal size, batches of tokens, pre-norm as it has it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality import peers_data as given
from benchmarks.quality.peers_data import Ids, Pairs, training_pairs, validation_pairs, vocabulary
from benchmarks.quality.peers_systems import Noting, Training, checkpoints_named, note_first_step, note_rate
from deltalm_ds.files import atomic_directory
from deltalm_ds.token_ids import SPECIAL_TOKENS, UNK_ID

ENDLESS = 1_000_000  # steps
# of a batch: pairs times the longest side of any of them; as many as make TOKENS_A_STEP of both sides without pads
BATCH_TOKENS = round(given.TOKENS_A_STEP * 0.55)


class Eole(Noting):
    """See `System`. On a CPU it has one process."""

    requirements = ("eole==0.6.4", "aiohttp")  # the second it imports without asking for it
    marker = "config.json"

    def command(self, out: Path, training: Training) -> list[str]:
        """See `System.command`."""
        assert training.processes == 1
        pieces = out.parents[1] / "pieces"
        if not pieces.exists():
            _write_pieces(pieces)
        out.mkdir(parents=True)
        config = out / "eole.yaml"
        config.write_text(yaml.safe_dump(_config(out, pieces, training.bf16)), encoding="utf-8")
        return ["-m", __name__, "-config", str(config)]

    def checkpoints(self, out: Path) -> dict[int, Path]:
        """See `System.checkpoints`."""
        return checkpoints_named(out, "step_")

    def open(self, checkpoint: Path) -> "EoleModel":
        """See `System.open`."""
        return EoleModel(checkpoint)


class EoleModel:
    """See `Opened`."""

    def __init__(self, checkpoint: Path) -> None:
        from eole.config.run import PredictConfig
        from eole.models.model import get_model_class
        from eole.models.model_saver import get_metadata

        self._checkpoint = checkpoint
        self._config = get_metadata(str(checkpoint))["config"]
        options = PredictConfig(model_path=[str(checkpoint)], src="", world_size=0, gpu_ranks=[])
        self._model, self._vocabularies, _ = get_model_class(self._config.model).for_inference(options, device_id=-1)
        self.num_parameters = sum(weight.numel() for weight in self._model.parameters())

    def nll(self, pairs: Pairs) -> float:
        """See `Opened.nll`; the pairs must be those of the validation, which its own iterator reads."""
        import torch
        from eole.constants import CorpusTask
        from eole.inputters.dynamic_iterator import build_dynamic_dataset_iter

        pieces = self._checkpoint.parents[2] / "pieces"
        data = {"valid": {"path_src": str(pieces / "val.en"), "path_tgt": str(pieces / "val.de"), "transforms": []}}
        settings = self._config.model_dump(exclude={"data"}, round_trip=True)
        settings["training"]["num_workers"] = 0
        config = type(self._config)(**settings, data=data)
        total, count = 0.0, 0
        for batch, _ in build_dynamic_dataset_iter(config, {}, self._vocabularies, task=CorpusTask.VALID, device_id=-1):
            with torch.inference_mode():
                found = self._model.compute_log_probs(batch["src"], batch["tgt"], batch["srclen"])
            total -= float(found["token_log_probs"].sum())
            count += int(found["padding_mask"].sum())
        assert count == sum(len(ids) + 1 for ids in pairs.targets)
        return total

    def translate(self, sources: list[Ids]) -> list[Ids]:
        """See `Opened.translate`."""
        asked, found = self._checkpoint / "asked", self._checkpoint / "found"
        asked.write_text("".join(map(_line, sources)), encoding="utf-8")
        options = ["-model_path", self._checkpoint, "-src", asked, "-output", found]
        options += ["-beam_size", given.BEAM, "-batch_size", 50, "-max_length", given.LONGEST]
        program = Path(sys.executable).with_name("eole")
        subprocess.run([program, "predict", *map(str, options)], check=True, stdout=subprocess.DEVNULL)
        ids = {vocabulary().token(token_id): token_id for token_id in range(vocabulary().num_tokens)}
        return [[ids.get(piece, UNK_ID) for piece in line.split()] for line in found.read_text("utf-8").splitlines()]


def train(arguments: list[str]) -> None:
    """`eole train` until the process is stopped, noting its first step and its rates."""
    from eole.bin.main import main as eole
    from eole.utils.statistics import Statistics

    out = Path(arguments[-1]).parent
    show = Statistics.output

    def output(self: Any, *rest: Any) -> None:
        note_rate(out, self.n_tokens / self.elapsed_time())
        show(self, *rest)

    Statistics.output = output
    note_first_step(out)
    sys.argv = ["eole", "train", *arguments]
    eole()


def _config(out: Path, pieces: Path, bf16: bool) -> dict[str, Any]:
    """A decoder layer has one feed-forward network where an interleaved block has two: it is as wide as both."""
    return {
        "seed": 1,
        "share_vocab": True,
        "src_vocab": str(pieces / "vocabulary"),
        "data": {
            "train": {"path_src": str(pieces / "train.en"), "path_tgt": str(pieces / "train.de")},
        },
        "report_every": given.LOG_EVERY,
        "model": {
            "architecture": "transformer",
            "hidden_size": given.WIDTH,
            "heads": given.HEADS,
            "share_embeddings": True,
            "share_decoder_embeddings": True,
            "embeddings": {"word_vec_size": given.WIDTH, "position_encoding_type": "SinusoidalInterleaved"},
            "encoder": {"layers": given.LAYERS, "transformer_ff": given.FFN},
            "decoder": {"layers": given.BLOCKS, "transformer_ff": 2 * given.FFN},
        },
        "training": {
            "model_path": str(out),
            "world_size": 0,
            "gpu_ranks": [],
            "compute_dtype": "bf16" if bf16 else "fp32",
            "batch_type": "tokens",
            "batch_size": BATCH_TOKENS,
            "normalization": "tokens",
            "bucket_size": 32_768,  # with its own 262,144 and two workers it begins later and has less of the cores
            "num_workers": 1,
            "train_steps": ENDLESS,
            "valid_steps": ENDLESS,
            "save_checkpoint_steps": given.SAVE_EVERY,
            "param_init_method": "xavier_uniform",
            "optim": "adam",
            "adam_beta1": given.BETAS[0],
            "adam_beta2": given.BETAS[1],
            "max_grad_norm": given.CLIP,
            "decay_method": "noam",  # times the width to the power of -1/2
            "learning_rate": given.PEAK_LR * (given.WIDTH * given.WARMUP) ** 0.5,
            "warmup_steps": given.WARMUP,
            "label_smoothing": given.SMOOTHING,
            "dropout": [given.DROPOUT],
            "attention_dropout": [0.0],
            "log_attention_entropy": False,  # a statistic that costs time
        },
    }


def _write_pieces(out: Path) -> None:
    """Every line as pieces between spaces, and the pieces."""
    with atomic_directory(out) as new:
        for split, pairs in (("train", training_pairs()), ("val", validation_pairs())):
            for language, sequences in (("en", pairs.sources), ("de", pairs.targets)):
                (new / f"{split}.{language}").write_text("".join(map(_line, sequences)), encoding="utf-8")
        names = [vocabulary().token(token_id) for token_id in range(vocabulary().num_tokens)]
        kept = [name for token_id, name in enumerate(names) if vocabulary().is_piece(token_id)]
        pieces = [name for name in kept if name not in SPECIAL_TOKENS]
        (new / "vocabulary").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")


def _line(ids: Ids) -> str:
    return " ".join(map(vocabulary().token, ids)) + "\n"


if __name__ == "__main__":
    train(sys.argv[1:])
