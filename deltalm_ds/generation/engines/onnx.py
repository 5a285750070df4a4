"""Running an ONNX export with ONNX Runtime, searched by our own beam search.

Legend: B sentences, N = B · beam rows, H heads, S source, L past, D head dim, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.exports import sizes_of
from deltalm_ds.generation.interface import BATCH_TOKENS, EngineOptions, Hypothesis, Ids, SearchOptions
from deltalm_ds.generation.sampling import sample
from deltalm_ds.model.packing import PackedSequences, pack_with_eos
from deltalm_ds.token_ids import EOS_ID

try:
    import onnxruntime
except ModuleNotFoundError:
    raise InputError("An ONNX model needs the package onnxruntime: pip install 'deltalm-ds[export]'.") from None

ATTENTION = "attention"  # an output of the decoder
NUMPY_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}


class OnnxCache:
    """What the decoder takes beside the tokens (see `beam_search.StepCache`).

    past: keys and values of each block, [N, H, L, D]. cross: those of the source, [B, H, S, D]. mask: [B, S] bool.
    """

    def __init__(self, past: dict[str, Tensor], cross: dict[str, Tensor], mask: Tensor) -> None:
        self.past, self.cross, self.mask = past, cross, mask
        self._rows: Tensor | None = None  # that the rows of the next step go on from

    def reserve(self, length: int) -> None:
        """Nothing: the decoder gives what it has got with every step."""

    def select_rows(self, rows: Tensor) -> None:
        """See `beam_search.StepCache`; done when the next step needs it."""
        self._rows = rows if self._rows is None else self._rows[rows]

    def select_sentences(self, sentences: Tensor) -> None:
        """See `beam_search.StepCache`."""
        self.cross = {name: tensor[sentences] for name, tensor in self.cross.items()}
        self.mask = self.mask[sentences]

    def selected_past(self) -> dict[str, Tensor]:
        """`past`, of the rows that have been selected."""
        if self._rows is not None:
            self.past = {name: tensor.index_select(0, self._rows) for name, tensor in self.past.items()}
            self._rows = None
        return self.past


class OnnxEngine:
    """A model that `deltalm export --to onnx` wrote (export/formats/onnx.py tells its inputs and outputs), on CPU.

    Raises:
        InputError: a file is missing. DataError: one cannot be opened.
    """

    def __init__(self, directory: str | Path, threads: int = 0) -> None:
        directory = Path(directory)
        self.vocabulary_size, self.max_positions = sizes_of(directory)
        self.batch_tokens = BATCH_TOKENS["cpu"]
        self._encoder, self._decoder = (
            _open(directory / "encoder.onnx", threads),
            _open(directory / "decoder.onnx", threads),
        )
        self._shows_attention = ATTENTION in {value.name for value in self._decoder.get_outputs()}
        cross = [value for value in self._encoder.get_outputs() if value.name.startswith("cross_keys")]
        self._num_blocks = len(cross)
        _, self._num_heads, _, self._head_dim = cross[0].shape

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; beam search by fairseq's rules, or samples."""
        return (sample if options.temperature else beam_search)(self, pack_with_eos(sources), options)

    @torch.inference_mode()
    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`; token by token, as the decoder takes one at a time."""
        if not sources:
            return []
        scores = []
        for label, outputs in self._teacher_forced(sources, targets):
            logits = outputs["logits"]
            scores.append(logits.gather(1, label[:, None])[:, 0] - logits.logsumexp(dim=1))
        rows = torch.stack(scores, dim=1).tolist()
        return [row[: len(target) + 1] for row, target in zip(rows, targets, strict=True)]

    @torch.inference_mode()
    def attention(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[np.ndarray]:
        """See `AttentionEngine`; token by token, as `score`.

        Raises:
            InputError: the export was made before it could show attention.
        """
        if not self._shows_attention:
            raise InputError("This export does not show attention: export the model again.")
        if not sources:
            return []
        steps = [outputs[ATTENTION] for _, outputs in self._teacher_forced(sources, targets, shows_attention=True)]
        found = torch.stack(steps, dim=1).numpy()
        return [
            of_pair[: len(target) + 1, : len(source) + 1]
            for of_pair, source, target in zip(found, sources, targets, strict=True)
        ]

    def _teacher_forced(
        self, sources: Sequence[Ids], targets: Sequence[Ids], shows_attention: bool = False
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The next token [N] of every target, and the decoder's outputs, step by step."""
        cache = self.start_decoding(pack_with_eos(sources))
        labels = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([*target, EOS_ID]) for target in targets], batch_first=True
        )  # what follows a target's end is not looked at
        last = torch.full((len(targets),), EOS_ID)
        for label in labels.unbind(1):
            yield label, self._step(last, cache, shows_attention)
            last = label

    def start_decoding(self, source: PackedSequences) -> OnnxCache:
        """See `beam_search.StepModel`."""
        tokens = torch.nn.utils.rnn.pad_sequence(source.tokens.split(source.lengths.tolist()), batch_first=True)
        mask = torch.arange(source.max_seqlen) < source.lengths[:, None]
        shape = (source.num_sequences, self._num_heads, source.max_seqlen, self._head_dim)
        names = [f"cross_{side}_{index}" for index in range(self._num_blocks) for side in ("keys", "values")]
        cross = _run(self._encoder, {"tokens": tokens, "mask": mask}, {name: torch.empty(shape) for name in names})
        return OnnxCache({}, cross, mask)

    def decode_step(self, tokens: Tensor, cache: OnnxCache) -> Tensor:
        """See `beam_search.StepModel`."""
        return self._step(tokens, cache)["logits"]

    def _step(self, tokens: Tensor, cache: OnnxCache, shows_attention: bool = False) -> dict[str, Tensor]:
        """The decoder's outputs of one more token a row; see `decode_step`."""
        nothing = torch.empty(len(tokens), self._num_heads, 0, self._head_dim)
        past = cache.selected_past() or {f"past{name.removeprefix('cross')}": nothing for name in cache.cross}
        inputs = {"tokens": tokens, "mask": cache.mask} | past | cache.cross
        outputs = {"logits": torch.empty(len(tokens), self.vocabulary_size)}
        if shows_attention:
            outputs[ATTENTION] = torch.empty(len(tokens), cache.mask.shape[1])
        present = {
            name.replace("past", "present"): torch.empty(*tensor.shape[:2], tensor.shape[2] + 1, tensor.shape[3])
            for name, tensor in past.items()
        }
        _run(self._decoder, inputs, outputs | present)
        cache.past = {name.replace("present", "past"): tensor for name, tensor in present.items()}
        return outputs


def open_engine(directory: Path, options: EngineOptions) -> OnnxEngine:
    """See `EngineEntry.open`; the threads are ONNX Runtime's, and this process's, which searches with PyTorch."""
    if options.device not in (None, "cpu"):
        raise InputError(f"--device {options.device}: the ONNX engine computes on the CPU only.")
    if options.dtype is not None:
        raise InputError("--dtype: an ONNX model computes in the precision that it was exported in; leave it out.")
    if options.threads:
        torch.set_num_threads(options.threads)
    return OnnxEngine(directory, options.threads)


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch's threads work between the runs
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for every kind of fault, with no common one but this
        raise DataError(f"{path} cannot be opened by ONNX Runtime: {error}.") from None


def _run(
    session: onnxruntime.InferenceSession, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Run a graph from tensors into tensors, without copies; returns `outputs`, filled."""
    binding = session.io_binding()
    contiguous = {name: tensor.contiguous() for name, tensor in inputs.items()}  # alive while it runs
    for bind, tensors in ((binding.bind_input, contiguous), (binding.bind_output, outputs)):
        for name, tensor in tensors.items():
            bind(name, "cpu", 0, NUMPY_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
    session.run_with_iobinding(binding)
    return outputs
