"""File size."""

from __future__ import annotations

from pathlib import Path

from paretoprune.core.errors import FileError
from paretoprune.core.measurement import Measurement
from paretoprune.targets.onnx_file import external_locations, read_model, tensors_of


def size_bytes(path: Path, target: str = "") -> Measurement:
    """Bytes of the exported file, and of the data files that it names."""
    path = Path(path)
    try:
        total = path.stat().st_size
        if path.suffix == ".onnx":
            model, _ = read_model(path)
            beside = {name for tensor in tensors_of(model) for name in external_locations(tensor)}
            total += sum((path.parent / name).stat().st_size for name in beside)
    except OSError as error:
        raise FileError(f"cannot read the size of {path}: {error.strerror or error}") from error
    return Measurement.exact(float(total), "B", target)
