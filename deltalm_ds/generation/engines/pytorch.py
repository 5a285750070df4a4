"""Running a model directory, or a model that is in memory already, with PyTorch and our own beam search."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.errors import InputError
from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.interface import BATCH_TOKENS, EngineOptions, Hypothesis, Ids, SearchOptions
from deltalm_ds.generation.joint_search import JointSearch
from deltalm_ds.generation.sampling import sample
from deltalm_ds.kernels.linear import FrozenWeights
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy
from deltalm_ds.kernels.precision import sum_products_in_float32
from deltalm_ds.model.cuda_graph import GraphRecorder
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences, pack_with_eos
from deltalm_ds.token_ids import EOS_ID

AnyModel = TypeVar("AnyModel", bound=torch.nn.Module)


class PyTorchEngine:
    """Our own model in this process, on the device and in the dtype of its weights.

    frozen: of a model that does not change any more. On a CPU in float32 it then gives a sentence, to the last bit,
    what it gives it alone, whatever the batch.
    """

    def __init__(self, model: DeltaLM, frozen: FrozenWeights | None = None) -> None:
        self.model, self._frozen = model, frozen
        self.vocabulary_size, self.max_positions = model.config.vocabulary_size, model.config.max_positions
        self.batch_tokens = BATCH_TOKENS[model.token_embedding.weight.device.type]

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; beam search by fairseq's rules, or samples."""
        with self._ready() as weight:
            source = pack_with_eos(sources).to(weight.device)
            if options.temperature:
                return sample(self.model, source, options)
            forces = bool(options.prefix or options.is_of_source)  # a step looks then which rows it forces
            recorder = GraphRecorder(weight.device) if weight.is_cuda and not forces else None
            return beam_search(self.model, source, options, recorder)

    def start_search(self) -> JointSearch | None:
        """See `RunningEngine`; on a GPU there is none, as the shapes of its recorded steps stay the same."""
        self.model.eval()
        return None if self.model.token_embedding.weight.is_cuda else JointSearch(self.model, self._frozen)

    @torch.inference_mode()
    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        with self._ready() as weight:
            source, labels = pack_with_eos(sources).to(weight.device), pack_with_eos(targets)
            shifted = _shifted(targets).to(weight.device)
            hidden = self.model.decode(shifted, self.model.encode(source), source)
            tokens = labels.tokens.to(weight.device)
            token_nll = linear_cross_entropy(hidden, weight, tokens, self.vocabulary_size).token_nll
        log_p = (-token_nll).cpu()  # once: every read of a GPU's memory waits for it
        return [of_target.tolist() for of_target in log_p.split(labels.lengths.tolist())]

    @torch.inference_mode()
    def attention(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[np.ndarray]:
        """See `AttentionEngine`."""
        with self._ready() as weight:
            source, shifted = pack_with_eos(sources).to(weight.device), _shifted(targets).to(weight.device)
            return [of_pair.cpu().numpy() for of_pair in self.model.attention_to_source(shifted, source)]

    @contextmanager
    def _ready(self) -> Iterator[Tensor]:
        """Inside, the model computes what outputs are made of; gives the token table."""
        self.model.eval()
        weight = self.model.token_embedding.weight
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.device_of(weight))  # kernels and graphs are launched on the current GPU
            if self._frozen:
                stack.enter_context(self._frozen.used())
            yield weight


def _shifted(targets: Sequence[Ids]) -> PackedSequences:
    """What the decoder is given to predict targets and their ends."""
    return PackedSequences.from_sequences([[EOS_ID, *target] for target in targets])


def open_engine(directory: Path, options: EngineOptions) -> PyTorchEngine:
    """See `EngineEntry.open`; the threads are this process's."""
    device, dtype = torch_device_and_dtype(options)
    return engine_of_frozen(unmapped(load_model(directory).to(device, dtype), options))


def engine_of_frozen(model: DeltaLM) -> PyTorchEngine:
    """An engine of a model that does not change any more."""
    return PyTorchEngine(model, FrozenWeights(model.step_weights()))


def unmapped(model: AnyModel, options: EngineOptions) -> AnyModel:
    """The model, its weights in memory of this process where the options ask for it."""
    if options.in_memory:
        for parameter in model.parameters():
            if parameter.is_cpu:
                parameter.data = parameter.data.clone()
    return model


def torch_device_and_dtype(options: EngineOptions) -> tuple[str, torch.dtype]:
    """Where and in what PyTorch is to compute; this process is made ready for it.

    Raises:
        InputError: there is no such GPU, or it does not compute in that dtype.
    """
    gpu = options.gpu(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    dtype = _dtype(options.dtype, gpu)
    sum_products_in_float32()
    if gpu is None:
        keep_freed_memory(in_large_pages=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    return "cpu" if gpu is None else f"cuda:{gpu}", dtype


def _dtype(name: str | None, gpu: int | None) -> torch.dtype:
    """The dtype asked for, or the device's default.

    Raises:
        InputError: the GPU does not compute in it.
    """
    if gpu is None:
        return getattr(torch, name or "float32")
    has_bfloat16 = torch.cuda.get_device_capability(gpu) >= (8, 0)
    if name is None:
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if name == "bfloat16" and not has_bfloat16:
        raise InputError("--dtype bfloat16: this GPU does not compute in it (sm_80 and later do); give float16.")
    return getattr(torch, name)
