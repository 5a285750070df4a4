"""CUDA graphs: what a function launches on a GPU is recorded once, and from then on started by one call.

What can be recorded takes no arguments and gives no result: it reads tensors that stay where they are and writes into
such tensors, it never waits for the device, and it draws random numbers from torch's default generator alone. That
generator is registered with every recording: a replay takes the seed and the offset that the generator has then, so
that after `torch.manual_seed` it draws exactly what the function itself would draw (ATen/cuda/CUDAGeneratorImpl.cpp,
`replay_prologue`), and moves the offset on by as much.
"""

import functools
from collections.abc import Callable

import torch


class GraphRecorder:
    """Records functions on one device.

    All recordings share one pool of memory, and may be replayed in any order, one after the other on one stream. What a
    replay makes anew, its results too, holds until another recording is replayed: copy it before, or let the function
    write it into tensors that were there before it was recorded.

    A device without CUDA graphs replays by calling the function. Tensors change there just when they change on a GPU:
    by a warm-up and by a replay, not by the recording, so that what surrounds graphs can be tested on any machine.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_graphs = device.type == "cuda"
        if self._has_graphs:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = _side_stream(device)

    def warm_up(self, run: Callable[[], None]) -> None:
        """Call `run` before it is recorded: kernels are then compiled and libraries have their workspaces.

        What it draws does not move torch's generator.
        """
        if not self._has_graphs:
            with torch.random.fork_rng(devices=[]):
                run()
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.random.fork_rng(devices=[self._device]), torch.cuda.stream(self._stream):
            run()
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record `run`, warmed up before, and return what replays it on the current stream.

        Nothing is computed: what `run` makes is undefined until the first replay. The recording lives as long as what
        is returned.
        """
        if not self._has_graphs:
            return run
        graph = torch.cuda.CUDAGraph()
        # of other threads, one makes pinned memory and one watches collectives meanwhile: both may
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recorders of a device: cuBLAS keeps a workspace for every stream that it has been called on."""
    return torch.cuda.Stream(device)
