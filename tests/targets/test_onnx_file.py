from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.targets import session
from paretoprune.targets.onnx_file import example_feed
from paretoprune.targets.size import size_bytes

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def write_model(path, locations=(), *, in_subgraph=False):
    """y = x @ weight; with `locations`, the weight's bytes are said to be there."""
    weight = numpy_helper.from_array(WEIGHT, "w")
    if locations:
        raw = weight.raw_data
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for location in locations:
            weight.external_data.add(key="location", value=location)
        weight.external_data.add(key="length", value=str(len(raw)))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    if in_subgraph:
        constant = helper.make_node("Constant", [], ["w"], value=weight)
        nodes, weights = [constant, helper.make_node("MatMul", ["x", "w"], ["y"])], []
    else:
        nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return path


@pytest.fixture
def no_runtime(monkeypatch):
    """The runtime must not see the file at all."""

    def seen(*_args, **_kwargs):
        pytest.fail("the runtime was given a file that should have been refused first")

    monkeypatch.setattr(session.onnxruntime, "InferenceSession", seen)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "own.bin").write_bytes(WEIGHT.tobytes())
    os.symlink(tmp_path / "secret.bin", inside / "link.bin")
    return inside


@pytest.mark.parametrize("in_subgraph", [False, True])
@pytest.mark.parametrize(
    "locations",
    [("../secret.bin",), ("sub/../../secret.bin",), ("link.bin",), ("",), ("own.bin", "../secret.bin")],
)
@pytest.mark.usefixtures("no_runtime")
def test_external_data_that_escapes_is_refused_first(target, folder, locations, in_subgraph):
    path = write_model(folder / "m.onnx", locations, in_subgraph=in_subgraph)
    with pytest.raises(FileError, match="'w' is stored in .*outside"):
        target.load(path)


@pytest.mark.usefixtures("no_runtime")
def test_an_absolute_location_is_refused_first(target, folder):
    with pytest.raises(FileError, match="outside"):
        target.load(write_model(folder / "m.onnx", (str(folder / "own.bin"),)))


def test_external_data_beside_the_file_is_read(target, folder):
    path = write_model(folder / "m.onnx", ("own.bin",))
    (y,) = target.load(path)({"x": np.eye(3, dtype=np.float32)})
    assert np.array_equal(y, WEIGHT)
    assert size_bytes(path).value == path.stat().st_size + WEIGHT.nbytes


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08"])
def test_what_is_not_a_model_is_refused(target, tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"m\.onnx"):
        target.load(path)


def test_a_truncated_file_is_refused(target, tmp_path):
    whole = write_model(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[:-9])
    with pytest.raises(FileError, match="truncated"):
        target.load(tmp_path / "m.onnx")


def test_a_missing_file_is_named(target, tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*gone\.onnx"):
        target.load(tmp_path / "gone.onnx")
    with pytest.raises(FileError, match=r"gone\.onnx"):
        size_bytes(tmp_path / "gone.onnx")


def test_inputs_are_checked_by_name_and_shape(target, tmp_path):
    runner = target.load(write_model(tmp_path / "m.onnx"))
    with pytest.raises(TargetError, match="takes the inputs x; given were z"):
        runner({"z": np.eye(3, dtype=np.float32)})
    with pytest.raises(TargetError, match=r"does not run on x \(1, 4\)"):
        runner({"x": np.ones((1, 4), np.float32)})


def test_what_the_runtime_refuses_is_a_target_error(target, tmp_path):
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TargetError, match="NoSuchOperator"):
        target.load(path)


def test_a_sample_is_made_up_for_fixed_sizes_only(target, tmp_path):
    path = write_model(tmp_path / "m.onnx")
    feed = example_feed(path)
    assert (feed["x"].shape, feed["x"].dtype) == ((1, 3), np.float32)
    assert target.load(path)(feed)[0].shape == (1, 2)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    onnx.save(model, path)
    with pytest.raises(UsageError, match="'x' is open beyond the batch"):
        example_feed(path)
