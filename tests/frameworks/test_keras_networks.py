"""Keras models, pruned: the result is a Keras model, exact, and is written and read."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import paretoprune as pp
from paretoprune.frameworks import KerasNetwork

Maker = Callable[[Any], tuple[Any, Any]]


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 8, 8, 3, generator=torch.Generator().manual_seed(1))


def words(count: int = 2) -> torch.Tensor:
    return torch.randint(1, 20, (count, 5), dtype=torch.int32, generator=torch.Generator().manual_seed(2))


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))


def sequential(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SeparableConv2D(12, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(16, activation="relu"),
            layers.Dense(4, activation="softmax"),
        ]
    )
    return model, images()


def residual(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    given = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(given)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.BatchNormalization()(layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)]))
    x = layers.Concatenate()([x, layers.Conv2D(6, 1)(x)])
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    return keras.Model(given, layers.Dense(3)(layers.Flatten()(x))), images()


def two_inputs(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((5,), dtype="int32", name="b")
    y = layers.LSTM(8)(layers.Embedding(20, 6)(b))
    z = layers.Concatenate()([layers.Dense(8, activation="relu")(a), y])
    z = layers.Dense(10, activation="gelu")(z)
    return keras.Model([a, b], layers.Dense(2)(z)), (vectors(6), words())


def named_inputs(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((5,), dtype="int32", name="b")
    y = layers.GRU(8)(layers.Embedding(20, 6)(b))
    z = layers.Concatenate()([layers.Dense(8, activation="relu")(a), y])
    return keras.Model({"a": a, "b": b}, layers.Dense(2)(z)), {"a": vectors(6), "b": words()}


def transformer(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    given = keras.Input((7, 16))
    x = layers.LayerNormalization()(given)
    x = layers.Add()([given, layers.MultiHeadAttention(4, 4)(x, x)])
    y = layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(16)(y)])
    return keras.Model(given, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), vectors(7, 16)


def recurrent(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    given = keras.Input((7, 6))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(given)
    return keras.Model(given, layers.Dense(3)(layers.GRU(8)(x))), vectors(7, 6)


def nested(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    given = keras.Input((8, 8, 3))
    inner = residual(keras)[0]
    return keras.Model(given, layers.Dense(2)(inner(layers.Rescaling(2.0)(given)))), images()


def grouped(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    given = keras.Input((8, 8, 3))
    x = layers.GroupNormalization(4)(layers.Conv2D(8, 3)(given))
    x = layers.Conv2DTranspose(6, 3)(layers.Conv2D(8, 3, groups=2)(x))
    x = layers.Dropout(0.1)(layers.Reshape((-1, 6))(x))
    return keras.Model(given, layers.Dense(3)(layers.Flatten()(x))), images()


def augmented(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.RandomFlip(),
            layers.Normalization(mean=0.5, variance=2.0),
            layers.Conv2D(8, 3),
            layers.PReLU(),
            layers.MaxPooling2D(),
            layers.ZeroPadding2D(1),
            layers.Conv2D(4, 3),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    return model, images()


def masked(keras: Any) -> tuple[Any, Any]:
    layers = keras.layers
    given = keras.Input((5,), dtype="int32")
    x = layers.LSTM(8)(layers.Embedding(20, 6, mask_zero=True)(given))
    return keras.Model(given, layers.Dense(2)(x)), words()


slow = pytest.mark.slow
CASES = [
    pytest.param(sequential, "inner", id="sequential"),
    pytest.param(transformer, "inner", id="transformer"),
    pytest.param(two_inputs, "all", id="two inputs", marks=slow),
    pytest.param(sequential, "all", id="sequential, all", marks=slow),
    *(
        pytest.param(make, axes, id=f"{make.__name__}, {axes}", marks=slow)
        for make in (residual, named_inputs, recurrent, nested, grouped, augmented, masked)
        for axes in ("inner", "all")
    ),
]


@pytest.mark.parametrize(("make", "axes"), CASES)
def test_the_result_is_a_keras_model_that_is_written_and_read(
    keras: Any, unsettled: Any, run: Any, make: Maker, axes: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    model, example = make(keras)
    unsettled(model)
    before, sizes = run(model, example), [tuple(w.shape) for w in model.weights]
    pruned = pp.prune(model, example, ratio=0.5, axes=axes)
    assert torch.equal(run(model, example), before), "the caller's model was changed"
    assert [tuple(w.shape) for w in model.weights] == sizes
    assert isinstance(pruned.model, keras.Model)
    assert not any("rewritten graph" in note for note in pruned.notes)
    assert pruned.model.count_params() < model.count_params()
    assert pruned.macs < pruned.original_macs
    mine = run(pruned.model, example)
    # `program` was proved against the dead-channel reference; the model must be the same function.
    torch.testing.assert_close(mine, run(pruned.program.module, example), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mine, before, atol=1e-4)
    file = pp.save(pruned, tmp_path / "small.keras")
    again = keras.saving.load_model(file)
    assert torch.equal(run(again, example), mine)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]


def test_trained_values_reach_the_file(keras: Any, run: Any, tmp_path: Path) -> None:
    """A folder holds the graph, whose weights must be those that the Keras model has now."""
    model, example = sequential(keras)
    pruned = pp.prune(model, example, ratio=0.5)
    for variable in pruned.model.trainable_variables:
        variable.assign(variable.value * 1.1)
    loaded = pp.load(pp.save(pruned, tmp_path / "folder"))
    torch.testing.assert_close(run(loaded.model, example), run(pruned.model, example), rtol=1e-4, atol=1e-5)
    assert loaded.notes[-1].startswith("loaded as the rewritten graph: a Keras model is kept by a path that ends in")
    with pytest.raises(pp.errors.FileError, match="holds a rewritten graph alone"):
        pp.load(tmp_path / "folder", model=torch.nn.Identity())


def test_the_result_trains(keras: Any) -> None:
    model, example = sequential(keras)
    pruned = pp.prune(model, example, ratio=0.5)
    small = pruned.model
    small.compile(optimizer=keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
    x = torch.randn(64, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    y = (x.mean((1, 2))[:, 0] > 0).int()
    losses = small.fit(x.numpy(), y.numpy(), epochs=4, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_head_size_that_no_config_can_say_gives_the_graph(keras: Any, run: Any, tmp_path: Path) -> None:
    """Keras divides scores by the root of key_dim, so a smaller head would be another function."""
    model, example = transformer(keras)
    pruned = pp.prune(model, example, ratio=0.5, axes="all")
    assert isinstance(pruned.model, torch.fx.GraphModule)
    why = "its scores are divided by the root of key_dim, which was 4 and would become 2"
    assert why in pruned.notes[-1]
    with pytest.raises(pp.errors.FileError, match="was not written: the result is the rewritten graph") as error:
        pp.save(pruned, tmp_path / "small.keras")
    assert why in str(error.value)
    assert "save it in a folder" in str(error.value)
    assert not list(tmp_path.iterdir())
    loaded = pp.load(pp.save(pruned, tmp_path / "folder"))
    assert torch.equal(run(loaded.model, example), run(pruned.model, example))


def subclassed(keras: Any) -> Any:
    class Own(keras.Model):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.convolution = keras.layers.Conv2D(8, 3, activation="relu")
            self.normalise = keras.layers.BatchNormalization()
            self.flatten = keras.layers.Flatten()
            self.head = keras.layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(self.flatten(self.normalise(self.convolution(x), training=training)))

    return Own()


def test_a_class_of_the_users_own_gives_the_graph(keras: Any, unsettled: Any, run: Any, tmp_path: Path) -> None:
    model = subclassed(keras)
    with pytest.raises(pp.errors.ModelError, match="has no weights yet: call it once on data"):
        pp.prune(model, images(), ratio=0.5)
    model(images())
    unsettled(model)
    pruned = pp.prune(model, images(), ratio=0.5)
    assert "made by a class of the user's own" in pruned.notes[-1]
    # Reference: zero what was removed. A batch norm behind it would bring it to life, so its gain and offset too.
    dead, whole = subclassed(keras), images(3)
    dead(whole)
    dead.set_weights(model.get_weights())
    twins = zip(model.layers, dead.layers, strict=True)
    names = {f"{own.name}.{v.name}": v for own, layer in twins for v in layer.weights}
    for name, dims in pruned.kept.items():
        for dim, kept in enumerate(dims):
            if kept is not None and "moving_" not in name:
                gone = sorted(set(range(names[name].shape[dim])) - set(kept.tolist()))
                names[name].assign(names[name].value.index_fill(dim, torch.tensor(gone), 0.0))
    torch.testing.assert_close(run(pruned.model, whole), run(dead, whole), rtol=1e-4, atol=1e-5)
    with pytest.raises(pp.errors.FileError, match="made by a class of the user's own"):
        pp.save(pruned, tmp_path / "own.keras")
    pp.save(pruned, tmp_path / "own")


def test_channels_stay_last_in_names_and_shapes(keras: Any) -> None:
    """A convolution's kernel is (3, 3, in, out): the plan speaks of Keras' own shapes."""
    model, example = sequential(keras)
    graph = pp.trace(model, example)
    first = next(a for a in graph.axes if a.prunable and a.size == 8)
    assert any(m.name.startswith("conv2d") and m.name.endswith(".kernel") and m.dim == 3 for m in first.members)


def test_a_copy_does_not_touch_the_model(keras: Any, run: Any) -> None:
    model, example = sequential(keras)
    before = run(model, example)
    network = copy.deepcopy(KerasNetwork(model))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(run(model, example), before)
    assert float(network(example).detach().std()) == 0


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**{k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}, **environment}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


IMPORTS = "import sys, torch, paretoprune as pp, tempfile; pp.prune, pp.save, pp.trace, pp.search, pp.Pruned\n"
PRUNES = (
    "net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
    "pruned = pp.prune(net, torch.randn(2, 4), ratio=0.5)\n"
    "pp.load(pp.save(pruned, tempfile.mkdtemp() + '/a'))\n"
)
CLEAN = (
    "assert not {'keras', 'tensorflow', 'h5py'} & set(sys.modules), 'imported'\n"
    "assert 'KERAS_BACKEND' not in __import__('os').environ\n"
)


@pytest.mark.parametrize("code", [IMPORTS, pytest.param(IMPORTS + PRUNES, marks=slow)], ids=["import", "prune"])
def test_keras_is_imported_only_when_it_is_asked_for(code: str) -> None:
    """Not by the package, not by surgery on torch modules, not by files of torch modules."""
    done = python(code + CLEAN)
    assert done.returncode == 0, done.stderr


@slow
def test_another_backend_is_refused_in_words(keras: Any, tmp_path: Path) -> None:
    sequential(keras)[0].save(tmp_path / "net.keras")
    code = (
        "import paretoprune as pp, torch\n"
        "try:\n"
        f"    pp.prune({str(tmp_path / 'net.keras')!r}, torch.randn(2, 8, 8, 3), ratio=0.5)\n"
        "except pp.errors.UsageError as error:\n"
        "    print(error)\n"
    )
    said = python(code, KERAS_BACKEND="jax").stdout
    assert said.startswith("the environment variable KERAS_BACKEND is 'jax'"), said
    assert "set KERAS_BACKEND=torch" in said
