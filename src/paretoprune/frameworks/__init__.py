"""Networks of other frameworks than torch: opened as torch modules, and written back. Keras 3, on its torch backend."""

from __future__ import annotations

from paretoprune.frameworks.keras_backend import is_keras
from paretoprune.frameworks.keras_files import is_keras_file, read_keras, write_keras
from paretoprune.frameworks.keras_network import KerasNetwork
from paretoprune.frameworks.keras_resize import fill, resized

__all__ = ["KerasNetwork", "fill", "is_keras", "is_keras_file", "read_keras", "resized", "write_keras"]
