"""A folder and the user's class: made again where that is safe, asked for where it is not, never imported."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import paretoprune as pp
from language_models import first, inputs, make
from paretoprune.graph import tensors_of
from paretoprune.pipeline.files import MANIFEST, WEIGHTS
from paretoprune.pipeline.plain_inputs import MAX_ELEMENTS, described, made

FileError = pp.errors.FileError
AS_GRAPH = "loaded as the rewritten graph, not as "


class Gated(nn.Module):
    """Its width stands in attributes, one buffer and one layer never enter the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.both = nn.Linear(6, 16)
        self.out = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.unused.bias.requires_grad_(False)
        self.register_buffer("version", torch.tensor([7.0]))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).split(self.width, -1)
        result: Tensor = self.out(value * torch.sigmoid(gate))
        return result


def gated() -> Gated:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gated().eval()


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[pp.Pruned, Path]:
    pruned = pp.prune(gated(), torch.randn(2, 6), ratio=0.5)
    assert type(pruned.model) is Gated
    return pruned, pp.save(pruned, tmp_path_factory.mktemp("class") / "net")


@pytest.fixture
def saved(once: tuple[pp.Pruned, Path], tmp_path: Path) -> Path:
    return shutil.copytree(once[1], tmp_path / "net")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[pp.Pruned, Path]:
    pruned = pp.prune(make("llama"), inputs("llama"), ratio=0.5)
    return pruned, pp.save(pruned, tmp_path_factory.mktemp("llama") / "net")


@pytest.fixture
def saved_llama(llama: tuple[pp.Pruned, Path], tmp_path: Path) -> Path:
    return shutil.copytree(llama[1], tmp_path / "net")


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as an attacker can: with a checksum that fits."""
    manifest = json.loads((folder / MANIFEST).read_bytes().partition(b"\n")[2])
    edit(manifest)
    text = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


# -- the user's own class ----------------------------------------------------------------------------------------------


def test_a_fresh_network_gives_the_class_back(once: tuple[pp.Pruned, Path], saved: Path) -> None:
    pruned = once[0]
    torch.manual_seed(9)
    fresh = Gated()
    before = copy.deepcopy(fresh.state_dict())
    loaded = pp.load(saved, model=fresh)
    assert type(loaded.model) is Gated
    assert loaded.model.width == 4
    x = torch.randn(5, 6)
    assert torch.equal(loaded.model(x), pruned.model(x))
    assert loaded.notes == pruned.notes
    assert fresh.width == 8
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items()), "the given network was changed"
    theirs = pruned.model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in loaded.model.state_dict().items())
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained == {"both.weight", "both.bias", "out.weight", "out.bias", "unused.weight"}


def test_without_one_it_is_the_graph_and_says_how_to_get_the_class(saved: Path) -> None:
    loaded = pp.load(saved)
    assert isinstance(loaded.model, fx.GraphModule)
    name = f"{Gated.__module__}:Gated"
    assert loaded.notes[-1] == (
        f"{AS_GRAPH}Gated: '{name}' is no class of transformers that is imported; "
        "give a fresh network of the class with model="
    )


def test_the_class_survives_a_detour_as_graph(saved: Path, tmp_path: Path, once: tuple[pp.Pruned, Path]) -> None:
    """Loaded as the graph, trained, saved again: the class can still be made, over the trained weights."""
    detour = pp.load(saved)
    with torch.no_grad():
        for parameter in detour.model.parameters():
            parameter.mul_(1.5)
    again = pp.save(detour, tmp_path / "again")
    loaded, x = pp.load(again, model=gated()), torch.randn(4, 6)
    assert type(loaded.model) is Gated
    assert loaded.notes == once[0].notes
    torch.testing.assert_close(loaded.model(x), detour.model(x))
    assert torch.equal(loaded.model.unused.weight, 1.5 * once[0].model.unused.weight)
    assert torch.equal(loaded.model.version, once[0].model.version)
    assert sum(n.startswith(AS_GRAPH) for n in pp.load(again).notes) == 1


def test_the_result_is_saved_again_in_its_class(saved: Path, tmp_path: Path) -> None:
    first_time = pp.load(saved, model=gated())
    second = pp.load(pp.save(first_time, tmp_path / "again"), model=gated())
    x = torch.randn(4, 6)
    assert torch.equal(second.model(x), first_time.model(x))
    assert (saved / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()


class Other(Gated):
    """The same tensors, another function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Wider(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


def test_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(FileError, match="the Other given is not the network that was saved: its forward gives other"):
        pp.load(saved, model=Other())
    with pytest.raises(FileError, match=r"Wider has 'more\.\w+', which the file does not hold"):
        pp.load(saved, model=Wider())
    with pytest.raises(FileError):
        pp.load(saved, model=nn.Linear(6, 3))


# -- transformers ------------------------------------------------------------------------------------------------------


def test_a_class_of_transformers_comes_back_by_itself(llama: tuple[pp.Pruned, Path]) -> None:
    pruned, folder = llama
    loaded = pp.load(folder)
    assert type(loaded.model) is type(pruned.model)
    assert torch.equal(first(loaded.model, inputs("llama")), first(pruned.model, inputs("llama")))
    assert loaded.notes == pruned.notes
    assert {n: tuple(t.shape) for n, t in tensors_of(loaded.model).items()} == {
        n: tuple(t.shape) for n, t in tensors_of(pruned.model).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "t5", "vit", "whisper", "mixtral"])
@pytest.mark.parametrize("axes", ["inner", "all"])
def test_every_class_comes_back(name: str, axes: str, tmp_path: Path) -> None:
    pruned = pp.prune(make(name), inputs(name), ratio=0.5, axes=axes)
    folder = pp.save(pruned, tmp_path / "net")
    for loaded in (pp.load(folder), pp.load(folder, model=make(name))):
        assert type(loaded.model) is type(pruned.model)
        assert torch.equal(first(loaded.model, inputs(name)), first(pruned.model.eval(), inputs(name)))


TRAP = "class_trap"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose import leaves a file behind."""
    mark = tmp_path / "sprung"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{TRAP}.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import PreTrainedModel\nclass Net(PreTrainedModel): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "path")
    return mark


@pytest.mark.parametrize(
    "name",
    [
        f"{TRAP}:Net",
        "transformers.models.unheard_of.modeling_unheard_of:Net",
        "transformers.models.blt.modeling_blt:BltForCausalLM",
        "transformers:LlamaForCausalLM",
        "transformers.models.llama.modeling_llama:LlamaForCausalLM.__init__",
        "transformers.models.llama.modeling_llama:PreTrainedModel",
        "transformers.models.llama.modeling_llama:logger",
        "transformers.models.llama.modeling_llama:LlamaMLP",
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "",
    ],
)
def test_no_module_that_a_file_names_is_imported(saved_llama: Path, trap: Path, name: str) -> None:
    before = set(sys.modules)
    rewrite(saved_llama, lambda m: m["class"].update({"class": name}))
    loaded = pp.load(saved_llama)
    assert isinstance(loaded.model, fx.GraphModule)
    assert f"'{name}' is no class of transformers that is imported" in loaded.notes[-1]
    with pytest.raises(pp.errors.ModelError, match="is no class of transformers that is imported"):
        loaded.model.generate()
    assert not trap.exists()
    assert not {m for m in set(sys.modules) - before if TRAP in m or "blt" in m or "unheard" in m}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("num_hidden_layers", 10**9, "its config asks for 1000000000 layers"),
        ("backbone", "resnet50", "its config names another network"),
        ("backbone", "hf-hub:evil/net", "its config names another network"),
        ("use_timm_backbone", True, "its config names another network"),
        ("hidden_act", "../../evil", "which may name a file or a place"),
        ("inner", {"deep": {"path": "C:\\evil"}}, "which may name a file or a place"),
        ("hidden_size", "wide", "its class could not be made"),
        ("hidden_act", "evil", "its class could not be made"),
        ("intermediate_size", -3, "its class could not be made"),
        ("rope_parameters", 5, "its class could not be made"),
    ],
)
def test_hostile_configs(saved_llama: Path, field: str, value: Any, why: str) -> None:
    rewrite(saved_llama, lambda m: m["class"]["config"].update({field: value}))
    loaded = pp.load(saved_llama)
    assert isinstance(loaded.model, fx.GraphModule)
    assert why in loaded.notes[-1]
    assert "\n" not in loaded.notes[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": f"{TRAP}.Net"}),
        ("_attn_implementation", f"{TRAP}/kernel"),
        ("attn_implementation", f"{TRAP}/kernel"),
        ("quantization_config", {"quant_method": "awq"}),
        ("dtype", "float16"),
        ("trust_remote_code", True),
        # What checkpoints of the hub hold.
        ("_name_or_path", "meta-llama/Llama-2-7b-hf"),
        ("task_specific_params", {"translation": {"prefix": "translate English to German: "}}),
    ],
)
def test_fields_that_name_code_are_not_read(
    saved_llama: Path, llama: tuple[pp.Pruned, Path], trap: Path, field: str, value: Any
) -> None:
    rewrite(saved_llama, lambda m: m["class"]["config"].update({field: value}))
    loaded = pp.load(saved_llama)
    assert type(loaded.model) is type(llama[0].model)
    assert torch.equal(first(loaded.model, inputs("llama")), first(llama[0].model, inputs("llama")))
    assert not trap.exists()


# -- parts of the manifest ---------------------------------------------------------------------------------------------


def _edit_of(value: list[Any]) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["class"]["edits"]["values"].append(value)


@pytest.mark.parametrize(
    "edit",
    [
        _edit_of(["", "__class__", "", 3]),
        _edit_of(["", "forward", "", 3]),
        _edit_of(["both", "weight", "", 3]),
        _edit_of(["", "width", "", "4"]),
        _edit_of(["", "width", "", [4]]),
        _edit_of(["", "width", "", 4.5]),
        _edit_of(["nowhere", "width", "", 4]),
        _edit_of(["", "new_attribute", "", 4]),
        _edit_of(["", "width", "", 5]),
        _edit_of(["", "", "", 5]),
        lambda m: m["class"]["edits"].update(narrow=[["both", 1, 1, 1.0]]),
        lambda m: m["class"]["edits"].update(narrow=[["both", -1, 1, 1.0]]),
        lambda m: m["class"]["edits"].pop("values"),
        lambda m: m["class"].update(own=["both.weight"]),
        lambda m: m["class"].update(own={"none": None}),
        lambda m: m["class"].update(config=5),
        lambda m: m["class"].update(inputs={}),
        lambda m: m["class"]["inputs"].update(args={"pickle": "gASV"}),
        lambda m: m["class"]["inputs"].update(args={"list": [{"tensor": {"shape": [1 << 40], "dtype": "float32"}}]}),
        lambda m: m["class"]["inputs"].update(args={"list": [{"tensor": {"shape": [2, 6], "dtype": "load"}}]}),
        lambda m: m["class"]["inputs"].update(args={"list": [{"tensor": {"shape": [-2, 6], "dtype": "float32"}}]}),
        lambda m: m.update({"class": "Gated"}),
    ],
)
def test_what_is_wrong_is_refused(saved: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    rewrite(saved, edit)
    fresh = gated()
    with pytest.raises(FileError) as error:
        pp.load(saved, model=fresh)
    assert "\n" not in str(error.value)
    assert fresh.width == 8
    assert fresh.both.weight.shape == (16, 6)


@pytest.mark.parametrize("name", ["../outside.weight", "/etc/passwd", "..\\outside", "both/../../weight"])
def test_names_that_are_paths_stay_names(saved: Path, name: str) -> None:
    """Nothing in a manifest names a file: the two files of a folder have fixed names."""
    rewrite(saved, lambda m: (m["alias"].update({name: "both.weight"}), m["class"]["own"].update({name: None})))
    before = set(saved.parent.rglob("*"))
    try:
        pp.load(saved)
    except FileError as error:
        assert name in str(error) or "does not describe" in str(error)  # noqa: PT017 - either is right
    assert set(saved.parent.rglob("*")) == before


def test_a_link_out_of_the_folder_needs_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"secret")
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="was altered") as error:
        pp.load(saved)
    assert "secret" not in str(error.value)


# -- inputs as plain data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(2, 3),
        torch.randn(2, 3, dtype=torch.complex64),
        torch.randn(2, 3).bfloat16(),
        torch.tensor([[True, False]]),
        torch.tensor([3, 9, 4]),
        torch.tensor(5),
        torch.zeros(0, 4),
        torch.tensor([[0.0, -torch.inf]]),
        {"a": (torch.randn(2), [None, 3, "x"]), "b": {}},
    ],
    ids=lambda v: str(getattr(v, "dtype", "nested")),
)
def test_inputs_as_plain_data(value: Any) -> None:
    again = made(json.loads(json.dumps(described(value))))
    leaves, others = (torch.utils._pytree.tree_flatten(v) for v in (value, again))
    assert leaves[1] == others[1]
    for a, b in zip(leaves[0], others[0], strict=True):
        if isinstance(a, Tensor):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert not b.is_floating_point() or bool(b.isfinite().all())
        else:
            assert a == b


def test_offsets_stay_in_order() -> None:
    """Where the bags of an EmbeddingBag begin."""
    again = made(described(torch.tensor([0, 2, 2, 7, 9])))
    assert again.tolist() == sorted(again.tolist())
    assert (int(again[0]), int(again[-1])) == (0, 9)


def test_all_inputs_together_have_a_limit() -> None:
    one = {"tensor": {"shape": [MAX_ELEMENTS // 64, 2], "dtype": "bool"}}
    with pytest.raises(FileError, match="more than the 268435456 entries that are sensible"):
        made({"list": [{"tensor": {"shape": [MAX_ELEMENTS + 1], "dtype": "bool"}}, one]})
