"""Running a model directory, or a model that is in memory already, with PyTorch and our own beam search."""

from collections.abc import Sequence
from pathlib import Path

import torch

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.interface import Hypothesis, Ids, SearchOptions
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy
from deltalm_ds.linear_choice import use_fastest
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences, pack_with_eos
from deltalm_ds.token_ids import EOS_ID


class PyTorchEngine:
    """Our own model in this process, on the device that its weights are on."""

    def __init__(self, model: DeltaLM) -> None:
        self.model = model
        self.vocabulary_size, self.max_positions = model.config.vocabulary_size, model.config.max_positions

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; beam search by fairseq's rules."""
        self.model.eval()
        return beam_search(self.model, pack_with_eos(sources).to(self.model.token_embedding.weight.device), options)

    @torch.inference_mode()
    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        self.model.eval()
        weight = self.model.token_embedding.weight
        source, labels = pack_with_eos(sources).to(weight.device), pack_with_eos(targets).to(weight.device)
        shifted = PackedSequences.from_sequences([[EOS_ID, *target] for target in targets]).to(weight.device)
        hidden = self.model.decode(shifted, self.model.encode(source), source)
        token_nll = linear_cross_entropy(hidden, weight, labels.tokens, self.vocabulary_size).token_nll
        return [(-nll).tolist() for nll in token_nll.split(labels.lengths.tolist())]


def open_engine(directory: Path, threads: int) -> PyTorchEngine:
    """See `EngineEntry.open`; on the GPU where there is one. `threads` are this process's."""
    if threads:
        torch.set_num_threads(threads)
    model = load_model(directory).to("cuda" if torch.cuda.is_available() else "cpu")
    use_fastest(model, ["forward"])
    return PyTorchEngine(model)
