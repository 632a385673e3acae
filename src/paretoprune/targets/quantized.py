"""From a checked fp32 file to one of another precision, checked against it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from paretoprune.core.errors import DataError, ExportMismatchError, TargetError
from paretoprune.core.precision import BY_LAYER, PRECISIONS, by_layer
from paretoprune.targets.feeds import Feed, slices
from paretoprune.targets.files import new_file
from paretoprune.targets.onnx_file import PRECISION
from paretoprune.targets.onnx_target import OnnxTarget
from paretoprune.targets.session import FileRunner
from paretoprune.targets.verify import check_finite, largest_error, snr_db
from paretoprune.targets.weights import store, weights_of

CALIBRATION_SAMPLES = 256
CALIBRATION_ROWS = 32
"""Rows per calibration call: every intermediate tensor of a call is held at once."""

VERIFY_SAMPLES = 64

_QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM")


def write_quantized(
    target: OnnxTarget,
    fp32: Path,
    path: Path,
    calibration: Iterable[Feed],
    precision: str,
    bits: Mapping[str, str],
) -> Path:
    """See `OnnxTarget.quantized`. Ranges are learned from up to CALIBRATION_SAMPLES samples.

    Raises ExportMismatchError if the signal-to-noise ratio on VERIFY_SAMPLES of them is below the precision's bound.
    """
    feeds = list(slices(calibration, CALIBRATION_ROWS, CALIBRATION_SAMPLES))
    if not feeds:
        raise DataError(f"calibration gave no batch; {precision} needs at least one")
    weights = weights_of(onnx.load(str(fp32)).graph)
    wanted = by_layer(dict.fromkeys(w.parameter for w in weights), bits, precision)
    of = {w.name: wanted[w.parameter] for w in weights}
    if precision == "int8-dynamic":  # no layer computes with a table that rows are picked from
        of |= {w.name: "int8-weights" for w in weights if w.looked_up and of[w.name] == precision}
    make = target.makers().get(precision)
    with new_file(path) as file:
        if make is None:
            shutil.copyfile(fp32, file)
        else:
            make(fp32, file, feeds, [name for name, chosen in of.items() if chosen != precision])
        model = onnx.load(str(file))
        stored = store(model, {name: chosen for name, chosen in of.items() if chosen in BY_LAYER})
        _check_done(model, precision, stored, make is not None)
        onnx.helper.set_model_props(model, {PRECISION: precision})
        onnx.save(model, str(file))
        check_quantized(target.load(fp32), target.load(file), feeds, precision)
    return path


def _check_done(model: ModelProto, precision: str, stored: int, made: bool) -> None:
    kinds = Counter(node.op_type for node in model.graph.node)
    if made and not stored and not any(kinds[kind] for kind in _QUANTIZED):
        raise TargetError(
            f"none of the network's operators has an {precision} form here ({_list(kinds)}): keep it in fp32"
        )
    if not made and not stored and precision in BY_LAYER[1:]:
        raise TargetError(
            f"the network has no weights of layers to store as {precision} ({_list(kinds)}): keep it in fp32"
        )


def _list(kinds: Mapping[str, int]) -> str:
    return ", ".join(sorted(kinds))


def check_quantized(
    reference: FileRunner, quantized: FileRunner, feeds: Sequence[dict[str, NDArray[Any]]], precision: str
) -> None:
    """Signal-to-noise on the calibration data, and a run of one sample alone: the size that is measured."""
    chosen = list(slices(feeds, CALIBRATION_ROWS, VERIFY_SAMPLES))
    expected, given = [reference(feed) for feed in chosen], [quantized(feed) for feed in chosen]
    for outputs in (*given, quantized(next(slices(chosen, 1, 1)))):
        check_finite(f"the {precision} file", quantized.output_names, outputs)
    ratio, least = snr_db(expected, given), PRECISIONS[precision].min_snr_db
    if not ratio >= least:
        raise ExportMismatchError(
            f"the {precision} file keeps {ratio:.1f} dB of the fp32 file's output (largest error "
            f"{largest_error(expected, given):.3g}); at least {least:g} dB is asked for. Keep this network "
            "in fp32, or its sensitive layers (bits=), or give more calibration data"
        )
