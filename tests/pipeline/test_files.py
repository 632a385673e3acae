"""`pp.save`, `pp.load` and checkpoints: what comes back is what went in, and nothing in a file is run."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.graph import tensors_of
from paretoprune.pipeline.files import MANIFEST, WEIGHTS

FileError = pp.errors.FileError
Edit = Callable[[dict[str, Any]], object]


class Tied(nn.Module):
    """A decoder that is the encoder turned round: one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(6, 12, bias=False)
        self.again = nn.Linear(6, 12, bias=False)
        self.again.weight = self.table.weight
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.table(x)) + torch.relu(self.again(-x)))
        return result


@pytest.fixture(scope="module")
def once(make_net: Callable[[], nn.Module], example: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pruned network and the folder that it was saved in; nobody changes either."""
    pruned = pp.prune(make_net(), example, ratio=0.5)
    return pruned, pp.save(pruned, tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture
def pruned(once: Any) -> pp.Pruned:
    return replace(once[0], model=copy.deepcopy(once[0].model))


@pytest.fixture
def saved(once: Any, tmp_path: Path) -> Path:
    return shutil.copytree(once[1], tmp_path / "net")


def rewrite(folder: Path, edit: Edit) -> None:
    """Change the manifest as an attacker can: with a checksum that fits."""
    manifest = json.loads((folder / MANIFEST).read_bytes().partition(b"\n")[2])
    edit(manifest)
    sign(folder, json.dumps(manifest).encode())


def sign(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def nodes(manifest: dict[str, Any], op: str) -> list[dict[str, Any]]:
    return [n for n in manifest["graph"]["nodes"] if n["op"] == op]


# -- there and back ---------------------------------------------------------------------------------------------------


def test_the_same_outputs_plan_and_figures(pruned: pp.Pruned, saved: Path) -> None:
    loaded = pp.load(saved)
    for count in (1, 5):
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(loaded.model(x), pruned.model(x), rtol=0, atol=0)
    assert loaded.plan == pruned.plan
    assert (loaded.macs, loaded.original_macs) == (pruned.macs, pruned.original_macs)
    *notes, last = loaded.notes
    assert tuple(notes) == pruned.notes
    assert last.startswith(
        "loaded as the rewritten graph, not as Net: 'tests.pipeline.conftest:Net' is no class of trans"
    )
    assert last.endswith("give a fresh network of the class with model=")
    assert loaded.kept.keys() == pruned.kept.keys()
    for name, dims in pruned.kept.items():
        for mine, theirs in zip(dims, loaded.kept[name], strict=True):
            assert (mine is None and theirs is None) or np.array_equal(mine, theirs)
    assert sorted(p.name for p in saved.iterdir()) == [MANIFEST, WEIGHTS]


def test_a_loaded_network_can_be_saved_again(saved: Path, tmp_path: Path, example: Tensor) -> None:
    first = pp.load(saved)
    second = pp.load(pp.save(first, tmp_path / "again"))
    torch.testing.assert_close(second.model(example), first.model(example), rtol=0, atol=0)
    assert (saved / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()


def test_what_was_trained_since_is_saved(pruned: pp.Pruned, tmp_path: Path, example: Tensor) -> None:
    before = pruned.model(example).detach()
    optimiser = torch.optim.SGD(pruned.model.train().parameters(), lr=0.1)
    pruned.model(example).square().mean().backward()
    optimiser.step()
    pruned.model.eval()
    loaded = pp.load(pp.save(pruned, tmp_path / "trained"))
    torch.testing.assert_close(loaded.model(example), pruned.model(example), rtol=0, atol=0)
    assert not torch.allclose(loaded.model(example), before)


def test_a_loaded_network_trains(saved: Path, data: pp.Data) -> None:
    model = pp.load(saved).model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for x, y in list(data.train) * 3:
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])
    x = next(iter(data.test))[0]
    assert not torch.equal(model(x), model.eval()(x)), "batch norm does not switch between training and evaluation"


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    pruned = pp.prune(model, torch.randn(2, 6), ratio=0.5, axes="all")
    loaded = pp.load(pp.save(pruned, tmp_path / "tied"))
    tensors = tensors_of(loaded.model)
    assert tensors["table.weight"] is tensors["again.weight"]
    assert tensors["table.weight"].shape == (6, 6)
    assert len(to_safetensors({})) < (tmp_path / "tied" / WEIGHTS).stat().st_size < 4 * (36 + 18 + 3) + 600
    x = torch.randn(4, 6)
    torch.testing.assert_close(loaded.model(x), pruned.model(x), rtol=0, atol=0)


def test_frozen_parameters_stay_frozen(net: nn.Module, example: Tensor, tmp_path: Path) -> None:
    net.conv1.weight.requires_grad_(False)
    loaded = pp.load(pp.save(pp.prune(net, example, ratio=0.5), tmp_path / "frozen"))
    named = dict(loaded.model.named_parameters())
    assert {n for n, p in named.items() if not p.requires_grad} == {"conv1.weight"}


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_bit_is_seen(saved: Path, name: str, place: float) -> None:
    file = saved / name
    raw = bytearray(file.read_bytes())
    raw[round(place * (len(raw) - 1))] ^= 4
    file.write_bytes(bytes(raw))
    with pytest.raises(FileError, match="altered"):
        pp.load(saved)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
@pytest.mark.parametrize("size", [0, 1, 64, 65, 300, -1])
def test_a_truncated_file_is_seen(saved: Path, name: str, size: int) -> None:
    file = saved / name
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(FileError, match=name):
        pp.load(saved)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileError, match=f"{name} cannot be read: No such file"):
        pp.load(saved)


def test_a_newer_schema_says_upgrade(saved: Path) -> None:
    rewrite(saved, lambda m: m.update(schema=2, from_the_future=True))
    with pytest.raises(FileError, match="has schema 2, this version reads up to 1: upgrade paretoprune"):
        pp.load(saved)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"5", b"{}", b'{"schema": "1"}', b"\xff\xfe", b"{", b"[" * 100_000, b'{"schema": true}']
)
def test_a_signed_text_that_is_no_manifest(saved: Path, text: bytes) -> None:
    sign(saved, text)
    with pytest.raises(FileError, match=MANIFEST):
        pp.load(saved)


PARTS = ["weights_sha256", "alias", "trainable", "plan", "graph", "kept", "notes"]


@pytest.mark.parametrize(
    ("key", "value"), [*((k, v) for k in PARTS for v in ("gone", 7, None)), ("macs", "gone"), ("original_macs", "gone")]
)
def test_a_manifest_with_a_part_that_is_wrong(saved: Path, key: str, value: Any) -> None:
    rewrite(saved, lambda m: m.pop(key) if value == "gone" else m.update({key: value}))
    with pytest.raises(pp.errors.PruneError):
        pp.load(saved)


# -- hostility --------------------------------------------------------------------------------------------------------

TRAP = "__import__('os').mkdir('trapped')"


@pytest.mark.parametrize(
    "target",
    [
        "builtins.eval",
        "os.system",
        "operator.attrgetter",
        "torch.load",
        "aten.from_file.default",
        "aten.set_.source_Storage",
        "aten.__class__.default",
        "prim.Print.default",
        f"aten.relu.default; {TRAP}",
    ],
)
def test_an_operator_that_is_not_allowed(saved: Path, target: str) -> None:
    rewrite(saved, lambda m: nodes(m, "call_function")[0].update(target=target))
    with pytest.raises(FileError, match="which is no tensor operator"):
        pp.load(saved)


def signature(args: list[str], kind: str) -> dict[str, Any]:
    """One positional input."""
    inner = [{"kind": kind, "keys": [], "children": [None]}, {"kind": "dict", "keys": [], "children": []}]
    return {"args": args, "in": {"kind": "tuple", "keys": [], "children": inner}, "out": None}


def test_the_signature_itself_is_sound(saved: Path, pruned: pp.Pruned, example: Tensor) -> None:
    """So that what the next test refuses is refused for its names."""
    rewrite(saved, lambda m: m["graph"].update(signature=signature(["x"], "tuple")))
    torch.testing.assert_close(pp.load(saved).model(example), pruned.model(example))


def _in_name(manifest: dict[str, Any]) -> None:
    nodes(manifest, "call_function")[0]["name"] = f"x = {TRAP} #"


def _in_input(manifest: dict[str, Any]) -> None:
    nodes(manifest, "placeholder")[0]["target"] = f"x={TRAP}"


def _in_keyword(manifest: dict[str, Any]) -> None:
    nodes(manifest, "call_function")[0]["kwargs"] = {"dict": [[f"x={TRAP}, y", 1]]}


def _in_signature(manifest: dict[str, Any]) -> None:
    manifest["graph"]["signature"] = signature([f"x={TRAP}"], "tuple")


def _in_attribute(manifest: dict[str, Any]) -> None:
    nodes(manifest, "get_attr")[0]["target"] = f"conv1.weight; {TRAP}"


def _in_method(manifest: dict[str, Any]) -> None:
    nodes(manifest, "call_function")[0].update(op="call_method", target=f"size(); {TRAP}")


def _in_module(manifest: dict[str, Any]) -> None:
    nodes(manifest, "call_function")[0].update(op="call_module", target="conv1")


def _in_container(manifest: dict[str, Any]) -> None:
    manifest["graph"]["signature"] = signature(["x"], "os.system")


def _in_type(manifest: dict[str, Any]) -> None:
    nodes(manifest, "call_function")[0]["args"] = [{"dtype": "load"}]


@pytest.mark.parametrize(
    "edit",
    [
        _in_name,
        _in_input,
        _in_keyword,
        _in_signature,
        _in_attribute,
        _in_method,
        _in_module,
        _in_container,
        _in_type,
    ],
)
def test_code_where_a_name_belongs_is_never_run(
    saved: Path, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(saved, edit)
    with pytest.raises(FileError):
        pp.load(saved)
    assert not (tmp_path / "trapped").exists()


def test_code_in_a_text_argument_stays_text(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument may be any text; torch writes it between quotes. Whatever happens then, it is not run."""
    monkeypatch.chdir(tmp_path)
    rewrite(saved, lambda m: nodes(m, "call_function")[0].update(args=[f"'){TRAP}#\n{TRAP}"]))
    with pytest.raises((FileError, RuntimeError)):
        pp.load(saved).model(torch.zeros(1, 1, 8, 8))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", [f"conv1'); {TRAP} #.weight", "__class__.weight", "conv1.__dict__", ""])
def test_hostile_names_of_tensors(saved: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def rename(manifest: dict[str, Any]) -> None:
        manifest["alias"][name] = "conv1.weight"
        manifest["trainable"][name] = True

    rewrite(saved, rename)
    with pytest.raises(FileError):
        pp.load(saved)
    assert not (tmp_path / "trapped").exists()


# -- checkpoints ------------------------------------------------------------------------------------------------------


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_in_every_form(net: nn.Module, tmp_path: Path, suffix: str, prefix: str) -> None:
    state = {prefix + n: t for n, t in net.state_dict().items()}
    file = tmp_path / f"net{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    fresh = type(net)()
    assert not same(fresh, net)
    assert pp.load_checkpoint(fresh, file) is fresh
    assert same(fresh, net)


def test_a_checkpoint_within_a_checkpoint(net: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    assert same(pp.load_checkpoint(type(net)(), tmp_path / "net.pth"), net)


def test_a_network_whose_own_part_is_called_module(net: nn.Module, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = type(net)()

    wrapped = Wrapped()
    torch.save(wrapped.state_dict(), tmp_path / "net.pt")
    assert same(pp.load_checkpoint(Wrapped(), tmp_path / "net.pt"), wrapped)


def test_counters_of_batch_norms_may_be_missing(net: nn.Module, tmp_path: Path) -> None:
    state = {n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "net.safetensors")
    pp.load_checkpoint(type(net)(), tmp_path / "net.safetensors")


def test_what_does_not_fit_is_listed(net: nn.Module, tmp_path: Path) -> None:
    state = dict(net.state_dict())
    del state["conv1.weight"]
    state["conv9.weight"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "net.safetensors")
    fresh = type(net)()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    with pytest.raises(FileError) as error:
        pp.load_checkpoint(fresh, tmp_path / "net.safetensors")
    assert str(error.value).endswith(
        "does not fit Net (missing: conv1.weight; unknown: conv9.weight; wrong shape: 'head.bias' (5,) for (4,))"
    )
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items()), "half of it was loaded"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["torch", "torch, old format", "pickle", "within a state dict"])
def test_a_pickle_is_never_run(net: nn.Module, tmp_path: Path, how: str) -> None:
    trap, file = Trap(tmp_path / "trapped"), tmp_path / "net.pt"
    if how == "pickle":
        file.write_bytes(pickle.dumps(trap))
    elif how == "within a state dict":
        torch.save({**net.state_dict(), "extra": trap}, file)
    else:
        torch.save(trap, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(FileError, match="damaged or may hold code: save model.state_dict"):
        pp.load_checkpoint(type(net)(), file)
    assert not (tmp_path / "trapped").exists()
    pickle.loads(pickle.dumps(trap))  # noqa: S301
    assert (tmp_path / "trapped").exists(), "the trap does not work, so nothing was proved"


def refusal(model: nn.Module, file: Path) -> str:
    """What `load_checkpoint` says, empty if it takes the file."""
    try:
        pp.load_checkpoint(model, file)
    except FileError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_refused_in_one_line(net: nn.Module, tmp_path: Path, zipped: bool) -> None:
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream, _use_new_zipfile_serialization=zipped)
    raw, dice = stream.getvalue(), np.random.default_rng(0)
    refused = 0
    for _ in range(80):
        damaged = bytearray(raw[: int(dice.integers(len(raw)))] if dice.random() < 0.3 else raw)
        for place in dice.integers(0, max(1, min(len(damaged), 900)), 3):
            damaged[place : place + 1] = bytes([int(dice.integers(256))])
        (tmp_path / "net.pt").write_bytes(bytes(damaged))
        said = refusal(type(net)(), tmp_path / "net.pt")
        assert "\n" not in said
        refused += bool(said)
    assert refused > 40


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "holds no state dict"),
        ({0: torch.zeros(2)}, "holds no state dict"),
        ({"a": 1}, "holds no state dict"),
        ({}, "does not fit Net"),
    ],
)
def test_something_else_than_a_state_dict(net: nn.Module, tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(FileError, match=words):
        pp.load_checkpoint(net, tmp_path / "net.pt")


def test_files_that_are_no_checkpoints(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "net.pickle").write_bytes(b"")
    with pytest.raises(FileError, match=r"a checkpoint is a state dict in one of \.safetensors"):
        pp.load_checkpoint(net, tmp_path / "net.pickle")
    (tmp_path / "net.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(FileError, match="no sound safetensors file"):
        pp.load_checkpoint(net, tmp_path / "net.safetensors")
    with pytest.raises(FileError, match="No such file"):
        pp.load_checkpoint(net, tmp_path / "none.pt")
