"""An ONNX graph in the making, with float32 or int8 products; its weights are stored outside (see formats/onnx.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor, nn

from deltalm_ds.export.int8 import LEAST_LARGEST, int8_rows
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.layers import Embedding, PostNorm

OPSET = 20  # the first with Gelu; 23's Attention refuses a broadcast mask [facts: ONNX opset]
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
IR_VERSION = 10
UINT8_ZERO = 128  # activations are quantized to 128 ± 127: the processors' products are uint8 by int8


class Graph:
    """A graph in the making. Values are named by strings, as in ONNX.

    weights: collects the tensors to be stored, by the name they have here; the same for both graphs.
    """

    def __init__(self, model: DeltaLM, weights: dict[str, Tensor]) -> None:
        self.model, self.config = model, model.config
        self._weights = weights
        self._used: list[str] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._name_of = {module: name for name, module in model.named_modules()}

    def input(self, name: str, dtype: type, shape: Sequence[int | str]) -> str:
        """Declare an input; a dimension is a number or a name."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str], kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator whose float32 output is one of the graph's.

        Args:
            name: of the output.
            shape: its dimensions, numbers or names.
            kind: of the operator, such as "Add".
            *inputs: the values that it takes.
            **attributes: its settings.
        """
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self._outputs.append(_value_info(name, np.float32, shape))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; returns its output."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def split(self, x: str, num_parts: int) -> list[str]:
        """[., parts · M] -> parts of [., M]."""
        names = [f"Split_{len(self._nodes)}_{part}" for part in range(num_parts)]
        self._nodes.append(helper.make_node("Split", [x], names, axis=1, num_outputs=num_parts))
        return names

    def constant(self, value: Any) -> str:
        """A small value in the graph itself: a list of integers (int64), or a numpy scalar."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, tensor: Tensor) -> str:
        """A stored tensor."""
        self._weights.setdefault(name, tensor.detach().contiguous())
        if name not in self._used:
            self._used.append(name)
        return name

    def to_model(self, name: str, location: str, places: dict[str, tuple[int, int]]) -> onnx.ModelProto:
        """The finished graph; `location` is the file of the weights, places[name] a tensor's first byte and size."""
        stored = [_external_tensor(used, self._weights[used], location, *places[used]) for used in self._used]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, [*self._constants, *stored])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="deltalm_ds")

    def look_up(self, tokens: str) -> str:
        """Rows of the token table: [...] -> [..., M]."""
        return self.op("Gather", self._token_table(), tokens)

    def logits(self, x: str) -> None:
        """The output `logits` [N, V] of x [N, M]."""
        self.output("logits", ["N", self.config.vocabulary_size], "Gemm", x, self._token_table(), transB=1)

    def linear(self, x: str, module: nn.Linear) -> str:
        """[…, in] -> […, out], both of two dimensions."""
        name = self._name_of[module]
        weight, bias = self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)
        return self.op("Gemm", x, weight, bias, transB=1)

    def norm(self, x: str, module: nn.LayerNorm | PostNorm) -> str:
        """LayerNorm over the last axis."""
        name = self._name_of[module]
        weight, bias = self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)
        return self.op("LayerNormalization", x, weight, bias, epsilon=self.config.layer_norm_eps)

    def positions(self, module: Embedding) -> str:
        """The position table [P, M]."""
        return self.weight(f"{self._name_of[module]}.positions", module.positions)

    def _token_table(self) -> str:
        table = self.model.token_embedding.weight[: self.config.vocabulary_size]
        return self.weight("token_embedding.weight", table)


class Int8Graph(Graph):
    """The same with int8 products and token table; formats/onnx.py tells how."""

    def look_up(self, tokens: str) -> str:
        table, scales = self._int8_token_table()
        rows = self.op("Cast", self.op("Gather", table, tokens), to=_element_type(np.float32))
        scale = self.op("Unsqueeze", self.op("Gather", scales, tokens), self.constant([-1]))
        return self.op("Mul", rows, scale)

    def logits(self, x: str) -> None:
        table, scales = self._int8_token_table()
        product, gain = self._product(x, self.op("Transpose", table, perm=[1, 0]), scales)
        self.output("logits", ["N", self.config.vocabulary_size], "Div", product, gain)

    def linear(self, x: str, module: nn.Linear) -> str:
        name = self._name_of[module]
        values, scales = int8_rows(module.weight)
        weight, weight_scales = self.weight(f"{name}.int8", values.T), self.weight(f"{name}.scales", scales)
        product, gain = self._product(x, weight, weight_scales)
        return self.op("Add", self.op("Div", product, gain), self.weight(f"{name}.bias", module.bias))

    def _int8_token_table(self) -> tuple[str, str]:
        """The table [V, M] int8 and its scales [V]."""
        table_name, scales_name = "token_embedding.int8", "token_embedding.scales"
        if table_name not in self._weights:  # it is large, and both graphs have it
            table = self.model.token_embedding.weight[: self.config.vocabulary_size]
            self._weights[table_name], self._weights[scales_name] = int8_rows(table)
        for name in (table_name, scales_name):
            self.weight(name, self._weights[name])
        return table_name, scales_name

    def _product(self, x: str, weight: str, scales: str) -> tuple[str, str]:
        """x [rows, in] by int8 [in, out] with `scales` [out] -> [rows, out], and [rows, 1] to divide it by."""
        largest = self.op("ReduceMax", self.op("Abs", x), self.constant([-1]), keepdims=1)  # [rows, 1]
        largest = self.op("Max", largest, self.constant(np.float32(LEAST_LARGEST)))
        gain = self.op("Div", self.constant(np.float32(127)), largest)
        shifted = self.op("Add", self.op("Mul", x, gain), self.constant(np.float32(UINT8_ZERO)))
        quantized = self.op("Cast", self.op("Round", shifted), to=_element_type(np.uint8))
        one, zero = self.constant(np.float32(1)), self.constant(np.uint8(UINT8_ZERO))
        return self.op("MatMulIntegerToFloat", quantized, weight, one, scales, zero, domain=CONTRIB), gain


def _element_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _value_info(name: str, dtype: type, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _element_type(dtype), shape)


def _external_tensor(name: str, tensor: Tensor, location: str, offset: int, length: int) -> onnx.TensorProto:
    """A tensor whose bytes are in the weight file."""
    place = {"location": location, "offset": str(offset), "length": str(length)}
    return onnx.TensorProto(
        name=name,
        dims=tensor.shape,
        data_type=_element_type(str(tensor.dtype).removeprefix("torch.")),
        data_location=onnx.TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key=key, value=value) for key, value in place.items()],
    )
