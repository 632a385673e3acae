"""Files with packed layers, read without running them."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, helper

from paretoprune.targets.sparse_cpu import CONV, DOMAIN

DENSE = ":dense"


def dense_twin(model: ModelProto) -> ModelProto:
    """The same graph with an ordinary operator in the place of each packed layer: for shapes and counts, not to run."""
    twin = ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    for node in model.graph.node:
        if node.domain != DOMAIN:
            twin.graph.node.add().CopyFrom(node)
            continue
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        shape, weight = list(said["shape"]), node.input[1] + DENSE
        if node.op_type == CONV:
            words = {"kernel_shape": shape[2:], "strides": said["stride"], "pads": [*said["padding"]] * 2}
            other = helper.make_node("Conv", [node.input[0], weight], [node.output[0]], **words)
        else:
            other = helper.make_node("MatMul", [node.input[0], weight], [node.output[0]])
            shape = shape[::-1]
        twin.graph.node.append(other)
        twin.graph.input.append(helper.make_tensor_value_info(weight, 1, shape))
    return twin


def packed_bytes(model: ModelProto) -> Mapping[str, int]:
    """By the name of a weight in the twin: bytes of what stands in the file in its place."""
    sizes = {t.name: len(t.raw_data) for t in model.graph.initializer}
    packed = [n for n in model.graph.node if n.domain == DOMAIN]
    return {n.input[1] + DENSE: sum(sizes.get(i, 0) for i in n.input[1:4]) for n in packed}
