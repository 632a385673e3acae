"""Static int8 for ONNX Runtime: QDQ, unsigned activations, signed weights per channel."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from paretoprune.core.errors import DataError, ExportMismatchError, TargetError
from paretoprune.targets.feeds import Feed, slices
from paretoprune.targets.files import new_file
from paretoprune.targets.fingerprint import has_int8_dot
from paretoprune.targets.session import RUNTIME_ERRORS, FileRunner, OrtRunner, one_line
from paretoprune.targets.verify import MIN_SNR_DB, check_finite, largest_error, snr_db

CALIBRATION_SAMPLES = 256
CALIBRATION_ROWS = 32
"""Rows per calibration call: every intermediate tensor of a call is held at once."""

VERIFY_SAMPLES = 64

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


QUANTIZER_ERRORS: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, TypeError, KeyError, AttributeError)
"""What the quantizer raises on graphs that it does not understand."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def quantize_file(fp32: Path, path: Path, calibration: Iterable[Feed], threads: int = 1) -> Path:
    """Write the int8 form of an exported fp32 file to `path`, in one file, and check it against the fp32 file.

    Ranges are the minima and maxima over up to 256 samples. Raises ExportMismatchError if the signal-to-noise ratio
    on them is below MIN_SNR_DB, TargetError if nothing could be quantized, DataError without calibration batches.
    """
    feeds = list(slices(calibration, CALIBRATION_ROWS, CALIBRATION_SAMPLES))
    if not feeds:
        raise DataError("calibration gave no batch; int8 needs at least one to learn the ranges")
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder, new_file(path) as file:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            _quantize(prepared, file, feeds)
        except QUANTIZER_ERRORS as error:
            raise TargetError(f"ONNX Runtime cannot quantize {fp32.name}: {one_line(error)}") from error
        check_int8(OrtRunner.open(fp32, threads), OrtRunner.open(file, threads), feeds)
    return path


def _quantize(prepared: Path, file: Path, feeds: list[dict[str, NDArray[Any]]]) -> None:
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quantize_static(
            str(prepared),
            str(file),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPS),
            per_channel=True,
            reduce_range=not has_int8_dot(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
    finally:
        logging.root.setLevel(level)
    nodes = onnx.load(str(file), load_external_data=False).graph.node
    if not any(node.op_type == "QuantizeLinear" for node in nodes):
        kinds = ", ".join(sorted({node.op_type for node in nodes}))
        raise TargetError(f"none of the network's operators has an int8 form here ({kinds}); keep it in fp32")


def check_int8(reference: FileRunner, quantized: FileRunner, feeds: list[dict[str, NDArray[Any]]]) -> None:
    """Signal-to-noise on the calibration data, and a run of one sample alone: the size that is measured."""
    chosen = list(slices(feeds, CALIBRATION_ROWS, VERIFY_SAMPLES))
    expected, given = [reference(feed) for feed in chosen], [quantized(feed) for feed in chosen]
    for outputs in (*given, quantized(next(slices(chosen, 1, 1)))):
        check_finite("the int8 file", quantized.output_names, outputs)
    ratio = snr_db(expected, given)
    if not ratio >= MIN_SNR_DB:
        raise ExportMismatchError(
            f"the int8 file keeps {ratio:.1f} dB of the fp32 file's output (largest error "
            f"{largest_error(expected, given):.3g}); "
            f"at least {MIN_SNR_DB:g} dB is asked for. Keep this network in fp32, or give more calibration data"
        )
