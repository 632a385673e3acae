"""A rewritten graph as plain JSON and back, without pickle. Only tensor operators can be named in it."""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import FileError
from paretoprune.core.graph import device_of
from paretoprune.graph.record import Record
from paretoprune.graph.rules.shape import SIZE_FUNCTIONS, SIZE_METHODS
from paretoprune.graph.surgery import attach

_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "neg",
    "getitem",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)
_FUNCTIONS: dict[str, Any] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")},
    **SIZE_FUNCTIONS,
    "device_of": device_of,
}
_REFUSED = frozenset({"from_file", "set_", "resize_", "storage_offset"})
_TORCH_VALUES = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_CONTAINERS: dict[str, type] = {"tuple": tuple, "list": list, "dict": dict, "record": Record}
"""A library's own output class, one with named fields, comes back as a Record."""


def dump(module: fx.GraphModule) -> dict[str, Any]:
    """Nodes, signature and constants' names; tensors are saved apart."""
    graph = module.graph
    nodes = [
        {
            "name": n.name,
            "op": n.op,
            "target": _target_name(n),
            "args": _encode(n.args),
            "kwargs": _encode(dict(n.kwargs)),
        }
        for n in graph.nodes
    ]
    return {"nodes": nodes, "signature": _signature(graph)}


def load(data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], trainable: Mapping[str, bool]) -> fx.GraphModule:
    """The module that `dump` described. `trainable`: parameter name -> requires_grad; other tensors are buffers.

    Every name that torch writes into generated code is checked to be a name. Raises FileError for that, for an
    operator that is no tensor operator, and for anything malformed.
    """
    root = nn.Module()
    made: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        _path(name)
        value = made.setdefault(
            id(tensor), nn.Parameter(tensor, requires_grad=trainable[name]) if name in trainable else tensor
        )
        attach(root, name, value)
    try:
        graph = _graph(data, {"training", *tensors})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"the graph is malformed ({type(error).__name__}: {str(error)[:160]})") from error
    root.training = False
    return fx.GraphModule(root, graph, class_name="PrunedGraph").eval()


def _graph(data: Mapping[str, Any], attributes: set[str]) -> fx.Graph:
    graph = fx.Graph()
    env: dict[str, fx.Node] = {}
    for item in data["nodes"]:
        (name,) = _names([item["name"]])
        args, kwargs = _decode(item["args"], env), _decode(item["kwargs"], env)
        _names(kwargs)
        env[name] = graph.create_node(item["op"], _target(item, attributes), tuple(args), dict(kwargs), name=name)
    _restore_signature(graph, data.get("signature"))
    graph.lint()
    return graph


_PART = re.compile(r"(?!__)[A-Za-z0-9_-]+")
"""One step of a tensor's dotted name: torch writes it into generated code, some as text between quotes."""


def _path(name: str) -> None:
    if not all(_PART.fullmatch(part) for part in name.split(".")):
        raise FileError(f"the graph holds {name[:80]!r} where the name of a tensor is expected")


def _names(names: Iterable[Any]) -> list[str]:
    """The same strings, if each of them is a plain Python name."""
    checked = list(names)
    for name in checked:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
            raise FileError(f"the graph holds {str(name)[:80]!r} where a name is expected")
    return checked


def _target_name(node: fx.Node) -> str:
    if node.op == "call_module":
        raise FileError(
            f"'{node.target}' is run as Python code, which a graph file cannot hold: keep the network's class and save "
            "the plan (pruned.plan.to_json()) and the state dict of pruned.model instead"
        )
    if node.op != "call_function":
        return str(node.target)
    for name, function in _FUNCTIONS.items():
        if node.target is function:
            return name
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        raise FileError(f"the graph calls {node.target}, which is no operator of torch itself and cannot be saved")
    return str(node.target)


def _target(item: Mapping[str, Any], attributes: set[str]) -> Any:
    op, name = item["op"], str(item["target"])
    if op == "output" or (op == "placeholder" and _names([name])) or (op == "get_attr" and name in attributes):
        return name
    if op == "call_method" and name in SIZE_METHODS:
        return name
    if op == "call_function" and name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if op == "call_function" and len(parts) == 3 and parts[0] == "aten" and parts[1] not in _REFUSED:
        packet = getattr(torch.ops.aten, parts[1], None)
        overload = getattr(packet, parts[2], None) if packet is not None else None
        if isinstance(overload, torch._ops.OpOverload):
            return overload
    raise FileError(f"the graph names '{name[:80]}', which is no tensor operator of this torch ({torch.__version__})")


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, list)):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": [[k, _encode(v)] for k, v in value.items()]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, _TORCH_VALUES):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FileError(f"a graph argument of type {type(value).__name__} cannot be saved")


def _decode(value: Any, env: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, env) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return env[content]
    if kind == "dict":
        return {k: _decode(v, env) for k, v in content}
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    found = getattr(torch, content, None)
    if kind in ("dtype", "layout", "memory_format") and isinstance(found, _TORCH_VALUES):
        return found
    raise FileError(f"the graph holds an argument of unknown kind '{kind}'")


def _signature(graph: fx.Graph) -> dict[str, Any] | None:
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return None
    return {
        "args": list(info.orig_args),
        "in": _encode_tree(info.in_spec, records=False),
        "out": None if info.out_spec is None else _encode_tree(info.out_spec, records=True),
    }


def _restore_signature(graph: fx.Graph, signature: Mapping[str, Any] | None) -> None:
    if signature is None:
        return
    into, out = (None if signature[k] is None else _decode_tree(signature[k]) for k in ("in", "out"))
    info = fx.graph._PyTreeInfo(_names(signature["args"]), into, out)  # type: ignore[arg-type]
    graph.set_codegen(fx.graph._PyTreeCodeGen(info))


def _encode_tree(spec: pytree.TreeSpec, *, records: bool) -> Any:
    """torch's own text form of a structure imports the modules that a file names; this one names four containers.

    `records`: another class with named fields may stand in it.
    """
    if spec.is_leaf():
        return None
    kind = next((name for name, of in _CONTAINERS.items() if spec.type is of), None)
    keys = _keys(spec)
    if kind is None and not (records and len(keys) == spec.num_children):
        raise FileError(f"inputs or outputs in a {spec.type.__name__} cannot be saved: use tuples, lists and dicts")
    kind = kind or "record"
    keys = keys if kind in ("dict", "record") else []
    if any(not isinstance(k, str) for k in keys):
        raise FileError("inputs or outputs in a dict whose keys are not strings cannot be saved")
    return {"kind": kind, "keys": keys, "children": [_encode_tree(c, records=records) for c in spec.children()]}


def _keys(spec: pytree.TreeSpec) -> list[Any]:
    """Names of the entries, which flattening wrote into the context: a dict's keys, or (keys, further settings)."""
    context = spec.context
    for found in (context, context[0] if isinstance(context, tuple) and context else None):
        if isinstance(found, (list, tuple)) and len(found) == spec.num_children:
            return list(found)
    return []


def _decode_tree(data: Any) -> pytree.TreeSpec:
    if data is None:
        return pytree.treespec_leaf()
    kind, children = _CONTAINERS[data["kind"]], [_decode_tree(c) for c in data["children"]]
    context = [str(k) for k in data["keys"]] if kind in (dict, Record) else None
    if context is not None and len(context) != len(children):
        raise FileError(f"the graph's structure has {len(context)} names for {len(children)} entries")
    return pytree.TreeSpec(kind, context, children)
