"""Keras files: those of TensorFlow users are opened, hostile and damaged ones refused; nothing in them is run."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paretoprune as pp
from paretoprune.frameworks import is_keras_file, read_keras, write_keras

FileError = pp.errors.FileError
CONFIG, WEIGHTS = "config.json", "model.weights.h5"


@pytest.fixture(scope="module")
def model(keras: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dense(3)]
    )


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def once(model: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("keras") / "net.keras"
    model.save(file)
    return file.read_bytes()


@pytest.fixture
def saved(once: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "net.keras"
    file.write_bytes(once)
    return file


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def rewrite(file: Path, **changed: bytes) -> None:
    """Change members as an attacker can: the archive stays sound."""
    parts = {**members(file), **{n.replace("__", "."): data for n, data in changed.items()}}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(members(file)[CONFIG])
    change(config)
    rewrite(file, config__json=json.dumps(config).encode())


def layer(config: dict[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = config["config"]["layers"][number]
    return found


# -- there and back ---------------------------------------------------------------------------------------------------


def test_a_file_is_the_model(model: Any, example: torch.Tensor, run: Any, saved: Path) -> None:
    assert is_keras_file(saved)
    assert torch.equal(run(read_keras(saved), example), run(model, example))
    by_file, by_model = (pp.prune(given, example, ratio=0.5) for given in (str(saved), model))
    assert by_file.plan == by_model.plan
    assert torch.equal(run(by_file.model, example), run(by_model.model, example))
    assert [a.size for a in pp.trace(saved, example).axes] == [a.size for a in pp.trace(model, example).axes]


def test_a_file_is_replaced_whole(model: Any, saved: Path, example: torch.Tensor) -> None:
    small = pp.prune(model, example, ratio=0.5)
    assert pp.save(small, saved) == saved
    assert read_keras(saved).count_params() == small.model.count_params()
    assert [p.name for p in saved.parent.iterdir()] == ["net.keras"]


def test_a_file_that_cannot_be_written_leaves_nothing(model: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        write_keras(model, tmp_path / "none" / "net.keras")
    assert not list(tmp_path.iterdir())


def old_config() -> dict[str, Any]:
    """What Keras 2.15 on TensorFlow writes."""

    def dense(name: str, units: int, activation: str, inputs: int) -> dict[str, Any]:
        return {
            "module": "keras.layers",
            "class_name": "Dense",
            "config": {
                "name": name,
                "trainable": True,
                "dtype": "float32",
                "units": units,
                "activation": activation,
                "use_bias": True,
                "kernel_initializer": {
                    "module": "keras.initializers",
                    "class_name": "GlorotUniform",
                    "config": {"seed": None},
                    "registered_name": None,
                },
                "bias_initializer": {
                    "module": "keras.initializers",
                    "class_name": "Zeros",
                    "config": {},
                    "registered_name": None,
                },
                "kernel_regularizer": None,
                "bias_regularizer": None,
                "activity_regularizer": None,
                "kernel_constraint": None,
                "bias_constraint": None,
            },
            "registered_name": None,
            "build_config": {"input_shape": [None, inputs]},
        }

    given = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_input_shape": [None, 6], "dtype": "float32", "sparse": False, "ragged": False, "name": "in"},
        "registered_name": None,
    }
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "old", "layers": [given, dense("first", 8, "relu", 6), dense("second", 3, "linear", 8)]},
        "registered_name": None,
        "build_config": {"input_shape": [None, 6]},
        "compile_config": {"optimizer": {"class_name": "Custom>Gone", "config": {}}, "loss": "mse"},
    }


def old_weights() -> dict[str, list[np.ndarray[Any, Any]]]:
    dice = np.random.default_rng(0)
    shapes = {"first": ((6, 8), (8,)), "second": ((8, 3), (3,))}
    return {n: [dice.normal(size=s).astype("float32") for s in both] for n, both in shapes.items()}


def expected(example: torch.Tensor) -> torch.Tensor:
    (a, b), (c, d) = ([torch.from_numpy(t) for t in pair] for pair in old_weights().values())
    return torch.relu(example @ a + b) @ c + d


def legacy(config: Any) -> Any:
    """The same in the `.h5` layout: no modules."""
    if isinstance(config, dict):
        if "registered_name" in config:
            config = {k: v for k, v in config.items() if k in ("class_name", "config")}
        return {k: legacy(v) for k, v in config.items()}
    return [legacy(v) for v in config] if isinstance(config, list) else config


def write_h5(file: Path, config: Any) -> None:
    """As Keras 2 on TensorFlow does: attributes name layers and weights, and each weight's name ends in ":0"."""
    import h5py

    with h5py.File(file, "w") as root:
        root.attrs["keras_version"], root.attrs["backend"] = "2.15.0", "tensorflow"
        root.attrs["model_config"] = json.dumps(config).encode()
        root.attrs["training_config"] = json.dumps({"loss": "mse", "optimizer_config": {"class_name": "Custom>Gone"}})
        group = root.create_group("model_weights")
        group.attrs["layer_names"] = [b"first", b"second"]
        group.attrs["keras_version"], group.attrs["backend"] = b"2.15.0", b"tensorflow"
        for name, values in old_weights().items():
            inner = group.create_group(name)
            names = [f"{name}/{leaf}:0" for leaf in ("kernel", "bias")]
            inner.attrs["weight_names"] = [n.encode() for n in names]
            for n, value in zip(names, values, strict=True):
                inner.create_dataset(n, data=value)


def functional(config: dict[str, Any]) -> dict[str, Any]:
    """The same network as a functional model of Keras 2."""
    layers, before = config["config"]["layers"], ""
    for part in layers:
        part["name"] = part["config"]["name"]
        part["inbound_nodes"] = [[[before, 0, 0, {}]]] if before else []
        before = part["name"]
    ends = {"input_layers": [["in", 0, 0]], "output_layers": [["second", 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "old", "trainable": True, "layers": layers, **ends}}


def test_a_functional_h5_file_of_tensorflow(keras: Any, run: Any, example: torch.Tensor, tmp_path: Path) -> None:
    write_h5(tmp_path / "net.h5", functional(legacy(old_config())))
    torch.testing.assert_close(run(read_keras(tmp_path / "net.h5"), example), expected(example))


def test_a_functional_archive_of_keras_2_says_what_to_do(saved: Path) -> None:
    edit(saved, lambda c: c.update(module="keras.src.engine.functional", class_name="Functional"))
    with pytest.raises(
        FileError, match=r"does not know \(keras.src.engine.functional\); save the model again with Keras"
    ):
        read_keras(saved)


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_an_h5_file_of_tensorflow(keras: Any, run: Any, example: torch.Tensor, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"net{suffix}"
    write_h5(file, legacy(old_config()))
    torch.testing.assert_close(run(read_keras(file), example), expected(example))
    pruned = pp.prune(file, example, ratio=0.5)
    again = keras.saving.load_model(pp.save(pruned, tmp_path / "small.keras"))
    assert tuple(again.get_layer("first").kernel.shape) == (6, 4)
    assert torch.equal(run(again, example), run(pruned.model, example))


def test_a_keras_archive_of_tensorflow(keras: Any, run: Any, example: torch.Tensor, tmp_path: Path) -> None:
    import h5py

    file, stream = tmp_path / "net.keras", io.BytesIO()
    with h5py.File(stream, "w") as root:
        for name, values in zip(("dense", "dense_1"), old_weights().values(), strict=True):
            for i, value in enumerate(values):
                root[f"layers/{name}/vars/{i}"] = value
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(CONFIG, json.dumps(old_config()))
        archive.writestr("metadata.json", '{"keras_version": "2.15.0", "date_saved": "2024-01-01@00:00:00"}')
        archive.writestr(WEIGHTS, stream.getvalue())
    torch.testing.assert_close(run(read_keras(file), example), expected(example))
    assert pp.prune(file, example, ratio=0.5).model.count_params() < 51


# -- hostility --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose import leaves a file behind; its functions do too."""
    where = tmp_path / "path"
    where.mkdir()
    mark = tmp_path / "sprung"
    (where / "keras_trap.py").write_text(
        f"open({str(mark)!r}, 'w').close()\ndef spring(*a, **k): return a[0]\nclass Layer:\n    pass\n"
    )
    monkeypatch.syspath_prepend(where)
    return mark


def _lambda_layer(config: dict[str, Any]) -> None:
    layer(config, 1).update(
        module="keras.layers",
        class_name="Lambda",
        config={
            "name": "evil",
            "function": {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}},
        },
    )


def _lambda_activation(config: dict[str, Any]) -> None:
    layer(config, 1)["config"]["activation"] = {
        "class_name": "__lambda__",
        "config": {"code": "4wAAAA==", "defaults": None, "closure": None},
    }


def _torch_pickle(config: dict[str, Any]) -> None:
    layer(config, 1).update(class_name="TorchModuleWrapper", config={"module": "gASVAAAA", "name": "evil"})


def _foreign_class(config: dict[str, Any]) -> None:
    layer(config, 1).update(module="keras_trap", class_name="Layer", registered_name=None)


def _foreign_function(config: dict[str, Any]) -> None:
    layer(config, 1)["config"]["activation"] = {
        "module": "keras_trap",
        "class_name": "function",
        "config": "spring",
        "registered_name": "spring",
    }


def _system(config: dict[str, Any]) -> None:
    layer(config, 1)["config"]["activation"] = {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    }


def _builtin(config: dict[str, Any]) -> None:
    layer(config, 1)["config"]["activation"] = {
        "module": "builtins",
        "class_name": "function",
        "config": "eval",
        "registered_name": "function",
    }


def _downloader(config: dict[str, Any]) -> None:
    layer(config, 1).update(
        module="keras.utils", class_name="get_file", config={"fname": "x", "origin": "http://127.0.0.1:9/x"}
    )


def _inner_downloader(config: dict[str, Any]) -> None:
    layer(config, 1).update(module="keras.src.utils.file_utils", class_name="get_file")


def _loader(config: dict[str, Any]) -> None:
    layer(config, 1)["config"]["activation"] = {
        "module": "keras.models",
        "class_name": "function",
        "config": "load_model",
        "registered_name": "load_model",
    }


def _registered(config: dict[str, Any]) -> None:
    layer(config, 1).update(module=None, class_name="Evil", registered_name="evil>Evil")


def _unnamed(config: dict[str, Any]) -> None:
    layer(config, 1).update(module=None, class_name="Evil", registered_name="Evil")


def _vocabulary(config: dict[str, Any]) -> None:
    layer(config, 1).update(
        class_name="StringLookup", config={"name": "words", "vocabulary": "/etc/passwd"}, registered_name=None
    )


def _model_elsewhere(config: dict[str, Any]) -> None:
    layer(config, 1).update(class_name="TFSMLayer", config={"name": "evil", "filepath": "/tmp/evil"})


def _compiled_within(config: dict[str, Any]) -> None:
    """Keras compiles a model within the model as its config says, also where the whole is not compiled."""
    loss = {"module": "keras_trap", "class_name": "function", "config": "spring", "registered_name": "spring"}
    inner = {"module": "keras", "class_name": "Sequential", "registered_name": None}
    inner |= {"config": {"name": "inner", "layers": []}, "compile_config": {"optimizer": "sgd", "loss": loss}}
    config["config"]["layers"].append(inner)


HOSTILE = {
    _compiled_within: r"does not know \(keras_trap\)",
    _lambda_layer: r"layer 'evil' \(Lambda\) cannot be opened, because a Lambda layer holds Python code",
    _lambda_activation: "holds a Python function as byte code",
    _torch_pickle: "holds a pickled torch module",
    _foreign_class: r"is of a class that this process does not know \(keras_trap\)",
    _foreign_function: r"does not know \(keras_trap\)",
    _system: r"does not know \(os\)",
    _builtin: r"does not know \(builtins\)",
    _downloader: r"does not know \(keras.utils\)",
    _inner_downloader: r"does not know \(keras.src.utils.file_utils\)",
    _loader: r"does not know \(keras.models\)",
    _registered: r"does not know \(Evil\)",
    _unnamed: r"does not know \(Evil\)",
    _vocabulary: "names another file",
    _model_elsewhere: "points at a TensorFlow program elsewhere",
}


@pytest.mark.parametrize("legacy_format", [False, True], ids=["keras", "h5"])
@pytest.mark.parametrize("change", HOSTILE, ids=lambda f: f.__name__.strip("_"))
def test_nothing_in_a_file_is_run(
    saved: Path, trap: Path, change: Callable[[dict[str, Any]], None], legacy_format: bool
) -> None:
    if legacy_format:
        config = old_config()
        change(config)
        saved = saved.with_suffix(".h5")
        write_h5(saved, config)
    else:
        edit(saved, change)
    with pytest.raises(FileError, match=HOSTILE[change]):
        read_keras(saved)
    assert not trap.exists()
    assert "keras_trap" not in sys.modules


def test_a_lambda_that_keras_itself_wrote(keras: Any, tmp_path: Path) -> None:
    mark = tmp_path / "sprung"
    where, layers = str(mark), keras.layers
    spring = layers.Lambda(lambda x: (open(where, "w").close(), x)[1])
    network = keras.Sequential([keras.Input((6,)), spring, layers.Dense(3)])
    network(torch.zeros(1, 6))
    assert mark.exists(), "the trap does not work"
    for file in (tmp_path / "net.keras", tmp_path / "net.h5"):
        network.save(file)
        mark.unlink(missing_ok=True)
        with pytest.raises(FileError, match="a Lambda layer holds Python code; a file is never run here"):
            pp.prune(file, torch.zeros(2, 6), ratio=0.5)
        assert not mark.exists()


def test_a_class_that_the_caller_registered_is_opened(keras: Any, run: Any, example: Any, tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("paretoprune_tests")
    class Doubled(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return 2 * x

    layers = keras.layers
    network = keras.Sequential([keras.Input((6,)), layers.Dense(8), Doubled(), layers.Dense(3)])
    network.save(tmp_path / "net.keras")
    pruned = pp.prune(tmp_path / "net.keras", example, ratio=0.5)
    again = read_keras(pp.save(pruned, tmp_path / "small.keras"))
    assert torch.equal(run(again, example), run(pruned.model, example))
    assert tuple(again.layers[0].kernel.shape) == (6, 4)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped-paretoprune", "a/../../escaped", "..\\escaped", "C:\\e"])
def test_a_member_that_points_out_of_the_archive(saved: Path, name: str) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(FileError, match="points out of its folder"):
        read_keras(saved)
    assert [p.name for p in saved.parent.iterdir()] == ["net.keras"]


def test_bombs(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import paretoprune.frameworks.keras_files as files

    monkeypatch.setattr(files, "SMALL_BYTES", 1 << 20)
    parts = members(saved)
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        archive.writestr("assets/zeros", bytes(2 << 20))
    with pytest.raises(FileError, match="'assets/zeros' grows from .* it was made to fill the memory"):
        read_keras(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        for i in range(files.MAX_MEMBERS + 1):
            archive.writestr(f"{i}", b"")
    with pytest.raises(FileError, match="10001 members, more than the 10000 that are sensible"):
        read_keras(saved)


def test_more_numbers_than_the_file_holds(saved: Path) -> None:
    """Such a layer would fill the memory before Keras saw that its weights are not there."""
    edit(saved, lambda c: layer(c, 3)["config"].update(units=10**12))
    with pytest.raises(FileError, match="describes a network of .* numbers and holds 115: it is damaged"):
        read_keras(saved)


def _weights(file: Path, change: Callable[[Any], None]) -> None:
    import h5py

    stream = io.BytesIO(members(file)[WEIGHTS])
    with h5py.File(stream, "r+") as root:
        change(root)
    rewrite(file, model__weights__h5=stream.getvalue())


def _external_link(root: Any) -> None:
    import h5py

    root["away"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft_link(root: Any) -> None:
    import h5py

    root["loop"] = h5py.SoftLink("/layers")


def _external_data(root: Any) -> None:
    root.create_dataset("away", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def _virtual_data(root: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,), "u1")
    root.create_virtual_dataset("away", layout)


def _claimed_data(root: Any) -> None:
    root.create_dataset("huge", (1 << 40,), "f4", chunks=(1 << 20,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_external_link, "'away' is a link to another place"),
        (_soft_link, "'loop' is a link to another place"),
        (_external_data, "the values of 'away' lie in another file"),
        (_virtual_data, "the values of 'away' lie in another file"),
        (_claimed_data, "'huge' claims .* it was made to fill the memory"),
    ],
    ids=lambda v: v.__name__.strip("_") if callable(v) else "",
)
def test_weights_that_reach_elsewhere(saved: Path, change: Callable[[Any], None], words: str) -> None:
    _weights(saved, change)
    with pytest.raises(FileError, match=words):
        read_keras(saved)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_a_truncated_archive(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(FileError, match="is no Keras archive"):
        read_keras(saved)


def test_a_flipped_bit_in_an_archive(saved: Path, model: Any) -> None:
    """Every member has a checksum; what it does not cover (dates) changes nothing."""
    data, dice = saved.read_bytes(), np.random.default_rng(0)
    values = [np.asarray(v.value.detach()) for v in model.weights]
    refused = 0
    for place in dice.integers(0, len(data), 40):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(dice.integers(8))
        saved.write_bytes(bytes(damaged))
        try:
            again = read_keras(saved)
        except FileError:
            refused += 1
            continue
        assert all(np.array_equal(a, b.value.detach()) for a, b in zip(values, again.weights, strict=True)), place
    assert refused > 30


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("net.keras", b"PK\x05\x06" + bytes(18), "has no config.json and no model.weights.h5"),
        ("net.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "cannot be read as a Keras model"),
        ("net.h5", b"no", "cannot be read as a Keras model"),
        ("net.txt", b"", "a Keras file ends in .keras, .h5, .hdf5"),
    ],
)
def test_something_else(keras: Any, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=words):
        read_keras(tmp_path / name)


def test_what_is_no_file_and_no_network(keras: Any, tmp_path: Path, example: torch.Tensor) -> None:
    with pytest.raises(FileError, match="there is no such file"):
        pp.prune(tmp_path / "none.keras", example, ratio=0.5)
    with pytest.raises(pp.errors.ModelError, match=r"give a torch\.nn\.Module or a Keras model, or the path of a"):
        pp.prune("resnet18", example, ratio=0.5)


def test_weights_without_a_network(model: Any, tmp_path: Path) -> None:
    model.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(FileError, match="holds weights alone, without the network"):
        read_keras(tmp_path / "only.weights.h5")
