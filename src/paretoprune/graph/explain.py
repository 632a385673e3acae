"""What went wrong in a capture: the user's own line, why, and what helps."""

from __future__ import annotations

import linecache
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
"""Code that is not the user's: torch's and this package's."""


_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")

ANY_SIZE = "use x.shape[0] or -1 instead of a number"


@dataclass(frozen=True)
class Problem:
    """`where` is ", at file:line: code", or empty where no line of the user's is known."""

    why: str
    remedy: str
    where: str = ""

    def of(self, name: str) -> str:
        return f"{name} cannot be captured: {self.why}{self.where}; {self.remedy}"


class SizeError(Exception):
    """A capture that holds for some sizes only. `why` reads on after "it cannot be captured: "."""

    def __init__(self, why: str, remedy: str, cause: BaseException | None = None):
        super().__init__(why)
        self.remedy, self.cause = remedy, cause


class StateError(Exception):
    """The captured graph gives other values than the network, for what no operator shows."""


_TABLE: tuple[tuple[str, str, str], ...] = (
    (
        r"Exporting a ScriptModule|ScriptMethod|__torch__|not an instance of torch.nn.Parameter",
        "it is TorchScript, whose operators cannot be seen",
        "give the Python module that it was compiled from",
    ),
    (
        r"<class '(?:[\w<>]+\.)*(\w*Cache)'>",
        "a {} goes in or out, inside which no tensor can be seen",
        "leave the cache out (use_cache=False): a graph computes every position anew",
    ),
    (
        r"no fake impl registered for <CustomOpDef\(([\w:]+)\)>",
        "operator {0} does not say what shape it gives (it has no fake kernel)",
        "register one with torch.library.register_fake('{0}')",
    ),
    (
        r"_higher_order_ops[/\\]",
        "a control-flow operator of torch's (cond, scan, while_loop) is used, which cannot be exported",
        "use torch.where, or put that step into a submodule of its own, which is then run as it is",
    ),
    (
        r"FakeTensor\.__format__",
        "a value of the data is written into a text",
        "take the print or log out of forward, or put it into a hook",
    ),
    (
        r"Found <class '(?:[\w<>]+\.)*(\w+)'> in output|output type <class '(?:[\w<>]+\.)*(\w+)'>",
        "forward returns a {}, inside which no tensor can be seen",
        "return tensors in tuples, lists, dicts or a dataclass",
    ),
    (
        r"functorch|torch\.func|BatchedTensor|GradTrackingTensor",
        "it uses function transforms of torch.func",
        "write that step with plain torch operators",
    ),
    (
        r"Could not guard on data-dependent expression(?s:.*)Size-like symbols: u",
        "a branch depends on a size that depends on the data (nonzero, unique, a boolean index)",
        "keep the size fixed with torch.where or a mask",
    ),
    (
        r"Could not guard on data-dependent expression zuf",
        "a value of the data is used as a Python number",
        "keep it a tensor (no float(), no formatting of values)",
    ),
    (
        r"Could not guard on data-dependent expression|data-dependent control flow",
        "a branch depends on the data",
        "replace the branch by torch.where, or give pp.trace the submodules that do not branch",
    ),
    (
        r"Could not extract specialized|DataDependentOutput|_local_scalar_dense",
        "a value of the data is used as a Python number",
        "keep it a tensor (no item(), tolist(), int() or float())",
    ),
    (
        r"DynamicOutputShape|data-dependent",
        "a size depends on the data",
        "keep the size fixed with torch.where or a mask",
    ),
    (
        r"\.numpy\(\)|numpy\.|NumPy",
        "a tensor leaves PyTorch (it is turned into a NumPy array)",
        "write that step with torch operators",
    ),
    (
        r"_sparse_|\bsparse_|Sparse[A-Z]|[Ss]parse tensor|torch\.sparse",
        "a sparse tensor is used",
        "convert it with .to_dense() first",
    ),
    (r"nested_tensor|NestedTensor|jagged", "a nested tensor is used", "use a padded tensor with a mask"),
    (r"quantize|quantized|qint8", "a quantized tensor is used", "give the float network, quantization is done here"),
    (
        r"Unsupported input type <class '(?:[\w<>]+\.)*(\w+)'>|input type <class '(?:[\w<>]+\.)*(\w+)'>",
        "an input is a {}, inside which no tensor can be seen",
        "give tensors in tuples, lists, dicts or a dataclass",
    ),
    (
        r"fake tensor in the exported program constant|FakeTensor.*constant",
        "a tensor is computed where the graph does not see it (a gradient inside forward, .data, a kept tensor)",
        "compute it from the inputs with torch operators",
    ),
    (
        r"[Cc]annot access data pointer|data_ptr|storage of a tensor subclass",
        "compiled code from outside PyTorch reads a tensor's memory",
        "register it as an operator with torch.library.custom_op and register_fake",
    ),
    (
        r"torch\.compiler\.disable|torch\._dynamo\.disable",
        "it switches the tracer off (torch.compiler.disable)",
        "take the decorator off, or unwrap the network (model.module)",
    ),
    (
        r"[Mm]ixing fake modes|fake mode .* does not match",
        "it keeps a tensor from an earlier call",
        "compute it from the inputs in every call",
    ),
    (
        r"leaf Variable that requires grad|[Mm]utat\w+ .*(?:requires? grad|parameter)",
        "a tensor that is trained is changed in place",
        "use an operator that is not in place",
    ),
    (r"Constraints violated|specialized", "its forward fixes a size that must stay dynamic", ANY_SIZE),
    (r"maximum recursion depth", "it calls itself without end", "end the recursion within forward"),
)
"""A pattern over "type: message" of what the exporter raised -> why, and what helps. The first that fits holds."""

_OPERATOR = re.compile(r"^(\w+)\.(\w+)\.(\w+)")


def explain(error: BaseException) -> Problem:
    """Never fails: what no row fits is quoted."""
    where = user_line(error)
    if isinstance(error, SizeError):
        return Problem(str(error), error.remedy, where or (user_line(error.cause) if error.cause else ""))
    if isinstance(error, StateError):
        why = "the graph gives other values than the network: it depends on hidden state, or a try hides a failed step"
        remedy = "make forward free of state that it changes, of random numbers that are not torch's, and of such a try"
        return Problem(why, remedy, where)
    text = f"{type(error).__name__}: {error}"
    if type(error).__name__ == "UnsupportedOperatorException" and (found := _OPERATOR.match(str(error))):
        return _of_operator(found, where)
    for pattern, why, remedy in _TABLE:
        if match := re.search(pattern, text):
            named = next((g for g in match.groups() if g), "")
            return Problem(why.format(named), remedy.format(named), where)
    return Problem(first_line(error), "give pp.trace the submodules that can be captured", where)


def _of_operator(found: re.Match[str], where: str) -> Problem:
    for pattern, why, remedy in _TABLE:
        if found[1] == "aten" and re.search(pattern, found[2]):
            return Problem(why, remedy, where)
    why = f"operator {found[1]}.{found[2]} does not say what shape it gives (it has no fake kernel)"
    return Problem(why, f"register one with torch.library.register_fake('{found[1]}::{found[2]}')", where)


def user_line(error: BaseException) -> str:
    """A suffix ", at file:line: code" for the innermost frame that is the user's; empty if there is none."""
    found = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s+(.+)', str(error))
    frames = [(f, int(n), code) for f, n, code in found]
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno, ""))
        trace = trace.tb_next
    user = [f for f in frames if _is_users(f[0])]
    if not user:
        return ""
    file, line, source = user[-1]
    return f", at {file}:{line}: {(source or linecache.getline(file, line)).strip()}"


def _is_users(file: str) -> bool:
    """Also a library over torch: what its layers do is what the user calls."""
    if file.startswith((*OWN, "<")):
        return False
    return not file.startswith(_STANDARD) or any(part in file for part in _INSTALLED)


def conditions(text: str) -> str:
    """A condition of the exporter's on sizes in words: "dimension 0 of x <= 25"."""
    return re.sub(r"(\w+)\.size\(\)\[(\d+)\]", r"dimension \2 of \1", text)


def definition(module: torch.nn.Module) -> str:
    """A suffix ", in forward at file:line" where no more is known; empty for code that is not the user's."""
    code = None if isinstance(module, torch.jit.ScriptModule) else getattr(type(module).forward, "__code__", None)
    if code is None or not _is_users(code.co_filename):
        return ""
    return f", in forward at {code.co_filename}:{code.co_firstlineno}"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
