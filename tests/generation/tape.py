"""A stand-in for CUDA graphs on a CPU: records the operations of a function and plays them where their tensors are.

As with a graph, recording runs nothing for good, nothing of Python runs in a replay, results come to lie where those of
the recording lay, and what reads a tensor's value cannot be recorded.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.item")


class TapeRecorder:
    """Has the methods of `GraphRecorder`, with the effects that they have on a GPU."""

    def __init__(self):
        self.num_warmed_up = self.num_recorded = self.num_replayed = 0

    def warm_up(self, run):
        self.num_warmed_up += 1
        run()

    def record(self, run):
        self.num_recorded += 1
        tape = _Tape()
        with tape:
            run()
        tape.undo()

        def replay():
            self.num_replayed += 1
            tape.play()

        return replay


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self._steps, self._before, self._made = [], {}, set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        assert not function.name().replace("::", ".").startswith(READS), f"{function} waits for the device"
        tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, torch.Tensor)]
        if function._schema.is_mutable:
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._made | self._before.keys():
                    self._before[storage.data_ptr()] = (storage, storage.clone())
        found = function(*arguments, **named)
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        is_new = [result.untyped_storage().data_ptr() not in places for result in results]
        self._made |= {r.untyped_storage().data_ptr() for r, new in zip(results, is_new, strict=True) if new}
        self._steps.append((function, arguments, named, results, is_new))
        return found

    def undo(self):
        """Put back what tensors held that were there before."""
        for storage, content in self._before.values():
            storage.copy_(content)

    def play(self):
        for function, arguments, named, results, is_new in self._steps:
            if function._schema.is_mutable or any(is_new):
                again = [leaf for leaf in tree_leaves(function(*arguments, **named)) if isinstance(leaf, torch.Tensor)]
                for result, value, new in zip(results, again, is_new, strict=True):
                    if new:
                        result.copy_(value)
