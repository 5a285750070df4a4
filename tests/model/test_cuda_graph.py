"""Recorded functions against the functions themselves; on a CPU through the stand-in, on a GPU through CUDA graphs."""

import pytest
import torch

from deltalm_ds.model.cuda_graph import GraphRecorder

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph is for GPUs")),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


class Product:
    """y = x w and its gradient of w, on tensors that stay where they are; forward and backward are recorded apart."""

    def __init__(self, device):
        self.x, self.y = torch.zeros(4, 3, device=device), torch.zeros(4, 2, device=device)
        self.w = torch.randn(3, 2, device=device, requires_grad=True)
        self.grad = torch.zeros(3, 2, device=device)

    def forward(self):
        self._made = self.x @ self.w
        self.y.copy_(self._made.detach())

    def backward(self):
        self.grad.copy_(*torch.autograd.grad(self._made.square().sum(), self.w))

    def both(self):
        self.forward()
        self.backward()


def test_replays_read_and_write_the_same_tensors(device):
    recorder, first, second = GraphRecorder(device), Product(device), Product(device)
    replays = []
    for product in (first, second):
        recorder.warm_up(product.both)
        replays.append((product, recorder.record(product.forward), recorder.record(product.backward)))
    for number in range(6):
        product, forward, backward = replays[number % 2]
        x = torch.randn(4, 3, device=device)
        product.x.copy_(x)
        forward()
        backward()
        expected = x @ product.w
        (gradient,) = torch.autograd.grad(expected.square().sum(), product.w)
        torch.testing.assert_close(product.y, expected.detach())
        torch.testing.assert_close(product.grad, gradient)


def test_a_replay_draws_what_the_function_draws_after_the_same_seed(device):
    """Graph or not: the default generator's seed and offset decide, and both move it on alike."""
    drawn = torch.zeros(2, 5, dtype=torch.int64, device=device)

    def draw():
        for row in drawn:
            row.copy_(torch.randint(2**62, (5,), device=device))

    torch.manual_seed(7)
    draw()
    expected = [drawn.clone()]
    draw()
    expected.append(drawn.clone())
    after = torch.randint(2**62, (5,), device=device)
    recorder = GraphRecorder(device)
    torch.manual_seed(3)
    recorder.warm_up(draw)
    replay = recorder.record(draw)
    torch.manual_seed(7)
    for rows in expected:
        replay()
        assert torch.equal(drawn, rows)
    assert torch.equal(torch.randint(2**62, (5,), device=device), after)


def test_recording_leaves_the_generator_where_it_was(device):
    out = torch.zeros(5, device=device)
    recorder = GraphRecorder(device)
    torch.manual_seed(7)
    expected = torch.rand(5, device=device)
    torch.manual_seed(7)
    recorder.warm_up(lambda: out.copy_(torch.rand(5, device=device)))
    recorder.record(lambda: out.copy_(torch.rand(5, device=device)))
    assert torch.equal(torch.rand(5, device=device), expected)


def test_tensors_change_by_a_warm_up_and_by_replays_alone(device):
    count = torch.zeros((), dtype=torch.int64, device=device)
    recorder = GraphRecorder(device)
    recorder.warm_up(lambda: count.add_(1))
    assert count == 1
    replay = recorder.record(lambda: count.add_(1))
    assert count == 1
    replay()
    replay()
    assert count == 3
