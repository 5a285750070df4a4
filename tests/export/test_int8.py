"""int8 weights are rounded to the nearest step and cannot saturate where a processor adds products in 16 bits."""

import numpy as np
import onnx
import pytest
import torch
from ctranslate2.specs import TransformerSpec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from onnx import numpy_helper
from toys import random_model

from deltalm_ds.export.formats.ctranslate2 import write_ctranslate2
from deltalm_ds.export.formats.onnx import write_onnx
from deltalm_ds.export.int8 import LARGEST_WEIGHT, int8_rows


@given(st_numpy.arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32)))
def test_rows_are_rounded_to_the_nearest_step(matrix):
    values, scales = int8_rows(torch.from_numpy(matrix))
    assert values.dtype == torch.int8
    restored = values.numpy() * scales.numpy()[:, None]
    steps = np.abs(matrix).max(axis=1, keepdims=True) / LARGEST_WEIGHT
    assert (np.abs(restored - matrix) <= 0.5001 * steps + 1e-12).all()


def saturating_product(activations, weights):
    """[rows, in] uint8 by int8 [out, in] as vpmaddubsw and vpmaddwd give it: neighbours added in 16 bits."""
    products = activations[:, None, :].astype(np.int32) * weights[None].astype(np.int32)
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=-1)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=-1)


@pytest.mark.parametrize(("largest", "is_exact"), [(LARGEST_WEIGHT, True), (LARGEST_WEIGHT + 1, False), (127, False)])
def test_the_largest_weight_is_the_largest_that_cannot_saturate(largest, is_exact):
    activations = np.full((1, 8), 255, np.uint8)
    for sign in (1, -1):
        weights = np.full((1, 8), sign * largest, np.int8)
        exact = activations.astype(np.int64) @ weights.astype(np.int64).T
        assert (saturating_product(activations, weights) == exact).all() == is_exact


def onnx_weights(directory):
    write_onnx(random_model(), None, directory, "int8")
    graphs = [onnx.load(directory / name).graph for name in ("encoder.onnx", "decoder.onnx")]
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    return [numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8]


def ctranslate2_weights(directory):
    with pytest.MonkeyPatch.context() as patch:
        saved = []
        patch.setattr(TransformerSpec, "save", lambda spec, _: saved.append(spec))
        write_ctranslate2(random_model(), None, directory, "int8")
    variables = saved[0].variables().values()
    return [variable.numpy() for variable in variables if getattr(variable, "dtype", None) == "int8"]


@pytest.mark.parametrize("weights_of", [onnx_weights, ctranslate2_weights])
def test_no_export_has_a_larger_weight(weights_of, tmp_path):
    weights = [np.abs(weight).max() for weight in weights_of(tmp_path)]
    assert len(weights) > 10 and max(weights) == LARGEST_WEIGHT
