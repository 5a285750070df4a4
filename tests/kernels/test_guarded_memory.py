"""Margins around tensors show what is written beside them, and give nan to who reads there."""

import pytest
import torch
from guarded_memory import MARGIN, Margins

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_alignment_and_margins(dtype: torch.dtype, device: str) -> None:
    margins = Margins()
    x = torch.arange(15, device=device).view(3, 5).to(dtype)
    placed = margins.place(x.T)
    assert torch.equal(placed, x.T)
    assert placed.is_contiguous()
    assert placed.data_ptr() % 64 == 0
    if dtype.is_floating_point:
        around = placed.as_strided((17,), (1,), placed.storage_offset() - 1)
        assert around.isnan().tolist() == [True, *[False] * 15, True]
    margins.check()
    assert margins.place(x[:0]).shape == (0, 5)
    margins.check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("place", "side"), [(-1, "before"), (-300, "before"), (15, "behind"), (4000, "behind")])
def test_what_is_written_beside_a_tensor_is_found(dtype: torch.dtype, place: int, side: str, device: str) -> None:
    margins = Margins()
    margins.place(torch.ones(2, device=device))
    placed = margins.place(torch.zeros(3, 5, dtype=dtype, device=device))
    assert abs(place) * placed.element_size() < MARGIN
    placed.as_strided((1,), (1,), placed.storage_offset() + place).fill_(0)
    with pytest.raises(AssertionError, match=f"tensor 1: .* bytes written {side} it"):
        margins.check()


def test_what_is_written_inside_is_no_mistake() -> None:
    margins = Margins()
    margins.place(torch.zeros(3, 5)).fill_(float("nan"))
    margins.check()
