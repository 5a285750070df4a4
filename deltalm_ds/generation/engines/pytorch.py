"""What can run a model: PyTorch, CTranslate2 or ONNX Runtime. All take and give ids without `</s>`."""

from collections.abc import Sequence

import torch

from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.interface import Hypothesis, Ids, SearchOptions
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
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


def pack_with_eos(sequences: Sequence[Ids]) -> PackedSequences:
    """Ids with `</s>` after each."""
    return PackedSequences.from_sequences([[*sequence, EOS_ID] for sequence in sequences])
