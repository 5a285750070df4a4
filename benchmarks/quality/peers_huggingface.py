"""Hugging Face's Seq2SeqTrainer with an mBART of equal size in `peers`: dynamic padding, similar lengths together."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.quality import peers_data as given
from benchmarks.quality.peers_data import Ids, Pairs, in_batches, training_pairs, vocabulary
from benchmarks.quality.peers_systems import Noting, Training, checkpoints_named, note_first_step, note_rate
from deltalm_ds.token_ids import BOS_ID, EOS_ID, PAD_ID

IGNORED = -100
ENDLESS = 1_000_000  # steps


class HuggingFace(Noting):
    """See `System`."""

    requirements = ("accelerate==1.15.0",)
    marker = "trainer_state.json"

    def command(self, out: Path, training: Training) -> list[str]:
        """See `System.command`."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(training.processes)]
        arguments = ["-m", __name__, str(out), "bf16" if training.bf16 else "fp32"]
        return [*launcher, *arguments] if training.processes > 1 else arguments

    def checkpoints(self, out: Path) -> dict[int, Path]:
        """See `System.checkpoints`."""
        return checkpoints_named(out, "checkpoint-")

    def open(self, checkpoint: Path) -> "MBart":
        """See `System.open`."""
        return MBart(checkpoint)


class MBart:
    """See `Opened`."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import MBartForConditionalGeneration

        self._model = MBartForConditionalGeneration.from_pretrained(checkpoint).float().eval()
        self.num_parameters = sum(weight.numel() for weight in self._model.parameters())

    def nll(self, pairs: Pairs) -> float:
        """See `Opened.nll`."""
        import torch

        total = 0.0
        for batch in in_batches(pairs.targets):
            inputs = _collated([pairs.sources[index] for index in batch], [pairs.targets[index] for index in batch])
            with torch.inference_mode():
                logits = self._model(**inputs).logits.flatten(0, 1)
            labels = inputs["labels"].flatten()
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        return total

    def translate(self, sources: list[Ids]) -> list[Ids]:
        """See `Opened.translate`."""
        found: list[Ids] = [[] for _ in sources]
        for batch in in_batches(sources):
            inputs = _collated([sources[index] for index in batch])
            outputs = self._model.generate(**inputs, num_beams=given.BEAM, max_new_tokens=given.LONGEST)
            for index, output in zip(batch, outputs.tolist(), strict=True):
                ids = output[1:]  # behind the </s> that the decoder begins with
                found[index] = [token for token in ids[: ids.index(EOS_ID)] if token > EOS_ID] if EOS_ID in ids else ids
        return found


def train(out: Path, bf16: bool) -> None:
    """Until the process is stopped."""
    sys.modules["deepspeed"] = None  # type: ignore[assignment]  # where it is found, it is imported, which takes seconds
    import torch
    from transformers import MBartForConditionalGeneration, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    note_first_step(out)
    tokens, since = 0, time.monotonic()

    def collate(pairs: list[dict[str, Ids]]) -> dict[str, Any]:
        nonlocal tokens
        tokens += sum(len(pair["labels"]) + 1 for pair in pairs)
        inputs = _collated([pair["input_ids"] for pair in pairs], [pair["labels"] for pair in pairs])
        # for the label smoothing, where the Trainer takes the labels away from the model
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
        return inputs

    class Rates(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal tokens, since
            now = time.monotonic()
            if state.is_world_process_zero:
                note_rate(out, tokens * processes / (now - since))
            tokens, since = 0, now

    torch.manual_seed(1)
    model = MBartForConditionalGeneration(_config())
    pairs, processes = training_pairs(), int(os.environ.get("WORLD_SIZE", "1"))
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        bf16=bf16,
        seed=1,
        max_steps=ENDLESS,
        per_device_train_batch_size=round(given.TOKENS_A_STEP / pairs.tokens_of_pair() / processes),
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        learning_rate=given.PEAK_LR,
        lr_scheduler_type="inverse_sqrt",
        warmup_steps=given.WARMUP,
        adam_beta1=given.BETAS[0],
        adam_beta2=given.BETAS[1],
        weight_decay=0.0,
        max_grad_norm=given.CLIP,
        label_smoothing_factor=given.SMOOTHING,
        save_steps=given.SAVE_EVERY,
        logging_steps=given.LOG_EVERY,
        report_to="none",
        disable_tqdm=True,
    )
    examples = [{"input_ids": s, "labels": t} for s, t in zip(pairs.sources, pairs.targets, strict=True)]
    since = time.monotonic()
    Seq2SeqTrainer(model, arguments, collate, train_dataset=examples, callbacks=[Rates()]).train()


def _config() -> Any:
    """A decoder layer has one feed-forward network where an interleaved block has two: it is as wide as both."""
    from transformers import MBartConfig

    return MBartConfig(
        vocab_size=vocabulary().num_tokens,
        d_model=given.WIDTH,
        encoder_layers=given.LAYERS,
        encoder_ffn_dim=given.FFN,
        encoder_attention_heads=given.HEADS,
        decoder_layers=given.BLOCKS,
        decoder_ffn_dim=2 * given.FFN,
        decoder_attention_heads=given.HEADS,
        dropout=given.DROPOUT,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_position_embeddings=2 * given.LONGEST,
        scale_embedding=True,
        bos_token_id=BOS_ID,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=EOS_ID,
        forced_eos_token_id=None,
    )


def _collated(sources: list[Ids], targets: list[Ids] | None = None) -> dict[str, Any]:
    """Padded to the longest, each with its `</s>`."""
    ids = _padded(sources, PAD_ID)
    inputs = {"input_ids": ids, "attention_mask": ids.ne(PAD_ID).long()}
    return inputs if targets is None else inputs | {"labels": _padded(targets, IGNORED)}


def _padded(sequences: list[Ids], fill: int) -> Any:
    import torch

    rows = [torch.tensor([*ids, EOS_ID]) for ids in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2] == "bf16")
