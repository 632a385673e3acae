"""Keras itself: imported when it is asked for, and only on its torch backend."""

from __future__ import annotations

import os
import sys
from typing import Any

from paretoprune.core.errors import ModelError, UsageError


def import_keras() -> Any:
    """The `keras` package on its torch backend. Raises UsageError where it is missing or runs on another backend."""
    if "keras" not in sys.modules:
        asked = os.environ.setdefault("KERAS_BACKEND", "torch")
        if asked != "torch":
            raise UsageError(
                f"the environment variable KERAS_BACKEND is {asked!r}; Keras models are worked on with its torch "
                "backend: set KERAS_BACKEND=torch before Python starts"
            )
    try:
        import keras
    except ImportError as error:
        raise UsageError(
            f"Keras cannot be imported ({error}); install it with pip install 'paretoprune[keras]'"
        ) from None
    if getattr(keras, "__version__", "0").startswith(("0", "1", "2")):
        raise UsageError(f"this is Keras {keras.__version__}; version 3 or later is needed: pip install -U keras")
    if keras.backend.backend() != "torch":
        raise UsageError(
            f"Keras was imported with the {keras.backend.backend()} backend; its torch backend is needed: set the "
            "environment variable KERAS_BACKEND=torch before the first import of keras, and open the model again"
        )
    return keras


def is_keras(value: Any) -> bool:
    """Is it a Keras layer or model? Nothing is imported to find out."""
    keras = sys.modules.get("keras")
    layer = getattr(getattr(keras, "layers", None), "Layer", None)
    return isinstance(layer, type) and isinstance(value, layer)


def checked_model(model: Any) -> Any:
    """A built Keras model or layer. Raises ModelError."""
    import_keras()
    if not getattr(model, "built", True):
        raise ModelError(
            f"the Keras model '{model.name}' has no weights yet: call it once on data, or give it an Input"
        )
    return model
