"""int8 for ONNX Runtime: unsigned activations, signed weights per channel, static ranges as QDQ."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from paretoprune.core.errors import TargetError
from paretoprune.targets.bias import correct_biases
from paretoprune.targets.feeds import Feed, slices
from paretoprune.targets.fingerprint import has_int8_dot
from paretoprune.targets.ranges import narrow_ranges
from paretoprune.targets.session import RUNTIME_ERRORS, one_line
from paretoprune.targets.weights import weights_of

QUANTIZED_OPS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Pad",
    "Relu",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Those that ONNX Runtime's CPU kernels compute in 8 bits, or move without looking. Others stay in fp32."""

REFINING_SAMPLES, REFINING_ROWS = 96, 8

DYNAMIC_OPS = ("MatMul", "Gemm", "LSTM")
"""Convolutions have no fast kernel for ranges that are known at run time only."""


QUANTIZER_ERRORS: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, TypeError, KeyError, AttributeError)
"""What the quantizer raises on graphs that it does not understand."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def quantize_statically(fp32: Path, file: Path, feeds: Sequence[Feed], kept: Collection[str]) -> None:
    """The int8 form of an exported fp32 file; layers of the weights `kept` stay as they are.

    Ranges are the minima and maxima over the feeds, narrowed where that loses less; biases take back what rounding the
    weights does on average. Raises TargetError for a graph that the quantizer cannot take.
    """

    def quantize(prepared: Path, nodes: list[str]) -> None:
        quantize_static(
            str(prepared),
            str(file),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPS),
            nodes_to_exclude=nodes,
            per_channel=True,
            reduce_range=not has_int8_dot(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        few = list(slices(feeds, REFINING_ROWS, REFINING_SAMPLES))
        narrow_ranges(prepared, file, few)
        correct_biases(prepared, file, few)

    _prepared(fp32, kept, quantize)


def quantize_dynamically(fp32: Path, file: Path, feeds: Sequence[Feed], kept: Collection[str]) -> None:
    """Weights of linear and recurrent layers in int8; the ranges of what enters them are taken from each input."""

    def quantize(prepared: Path, nodes: list[str]) -> None:
        quantize_dynamic(
            str(prepared),
            str(file),
            op_types_to_quantize=list(DYNAMIC_OPS),
            nodes_to_exclude=nodes,
            per_channel=True,
            reduce_range=not has_int8_dot(),
            weight_type=QuantType.QInt8,
        )

    _prepared(fp32, kept, quantize)


def _prepared(fp32: Path, kept: Collection[str], quantize: Callable[[Path, list[str]], None]) -> None:
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            graph = onnx.load(str(prepared)).graph
            quantize(prepared, [name for weight in weights_of(graph) if weight.name in kept for name in weight.layers])
    except QUANTIZER_ERRORS as error:
        raise TargetError(f"ONNX Runtime cannot quantize {fp32.name}: {one_line(error)}") from error
    finally:
        logging.root.setLevel(level)
