"""`Pruned.save_pretrained`: what it writes, `from_pretrained` of the model's own class loads, with the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretoprune as pp
from language_models import first, inputs, make

ModelError = pp.errors.ModelError


def feed_forward(axis: Any) -> bool:
    words = ("fc1", "fc2", "intermediate", "mlp", "wi", "DenseReluDense")
    return axis.kind == "channel" and any(w in m.name for m in axis.members for w in words)


slow = pytest.mark.slow
EXPRESSIBLE = [
    pytest.param(
        "llama", "inner", {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 12}, id="llama"
    ),
    pytest.param("vit", "all", {"hidden_size": 8, "intermediate_size": 12}, id="vit", marks=slow),
    pytest.param("bert", feed_forward, {"intermediate_size": 12, "hidden_size": 16}, id="bert", marks=slow),
    pytest.param("gpt2", feed_forward, {"n_inner": 32, "n_embd": 16}, id="gpt2", marks=slow),
    pytest.param("opt", feed_forward, {"ffn_dim": 12}, id="opt", marks=slow),
    pytest.param("t5", "inner", {"d_ff": 12, "num_heads": 2, "d_kv": 4}, id="t5", marks=slow),
    pytest.param("t5", "all", {"d_ff": 12, "num_heads": 2, "d_kv": 2}, id="t5, all", marks=slow),
    pytest.param("whisper", feed_forward, {"encoder_ffn_dim": 12, "decoder_ffn_dim": 12}, id="whisper", marks=slow),
    pytest.param("mixtral", "inner", {"intermediate_size": 12, "num_key_value_heads": 1}, id="mixtral", marks=slow),
]


@pytest.mark.parametrize(("name", "axes", "fields"), EXPRESSIBLE)
def test_from_pretrained_gives_the_result(
    name: str, axes: str | Callable[[Any], bool], fields: dict[str, int], tmp_path: Path
) -> None:
    model, given = make(name), inputs(name)
    pruned = pp.prune(model, given, ratio=0.5, axes=axes)
    config = pruned.model.config
    before = config.to_dict()
    folder = pruned.save_pretrained(tmp_path / "small")
    assert folder == tmp_path / "small"
    assert pruned.model.config is config
    assert config.to_dict() == before, "the config of the model in memory was changed"
    loaded = type(model).from_pretrained(folder)
    assert {n: getattr(loaded.config, n) for n in fields} == fields
    assert {n: tuple(t.shape) for n, t in loaded.state_dict().items()} == {
        n: tuple(t.shape) for n, t in pruned.model.state_dict().items()
    }
    for seed in (1, 2):
        other = {k: v.roll(seed, -1) for k, v in given.items()}
        torch.testing.assert_close(first(loaded, other), first(pruned.model.eval(), other), rtol=1e-3, atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {"small"}, "something temporary was left"
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors"}


@pytest.mark.slow
def test_training_since_is_saved(tmp_path: Path) -> None:
    model, given = make("llama"), inputs("llama")
    pruned = pp.prune(model, given, ratio=0.5)
    with torch.no_grad():
        for parameter in pruned.model.parameters():
            parameter.mul_(1.1)
    loaded = type(model).from_pretrained(pruned.save_pretrained(tmp_path / "small"))
    torch.testing.assert_close(first(loaded, given), first(pruned.model, given))


@pytest.mark.slow
def test_what_a_config_cannot_say_is_refused_with_the_reason(tmp_path: Path) -> None:
    """BERT's config divides hidden_size by the number of heads: fewer heads of the same size have no words in it."""
    pruned = pp.prune(make("bert"), inputs("bert"), ratio=0.5, axes="inner")
    with pytest.raises(ModelError, match="BertConfig cannot express the result: '.*attention.self.query.weight'") as e:
        pruned.save_pretrained(tmp_path / "small")
    assert "has shape (8, 16), the config gives (16, 16), and only 'hidden_size' changes it" in str(e.value)
    assert str(e.value).endswith("use paretoprune.save, which writes any result")
    assert not list(tmp_path.iterdir())
    loaded = pp.load(pp.save(pruned, tmp_path / "any"))
    assert type(loaded.model) is type(pruned.model)


def test_layers_of_different_widths_are_refused_with_the_reason(tmp_path: Path) -> None:
    model, given = make("llama"), inputs("llama")
    pruned = pp.prune(model, given, ratio={"model.layers.0.mlp*": 0.5}, axes="inner")
    with pytest.raises(ModelError, match="LlamaConfig has one size for all layers") as error:
        pruned.save_pretrained(tmp_path / "small")
    assert "'model.layers.0.mlp.gate_proj.weight' has shape (12, 32)" in str(error.value)
    assert "has (24, 32)" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rotary_frequencies_that_the_config_gives_anew(tmp_path: Path) -> None:
    """The smaller head keeps the frequencies of the pairs that stayed; the class would compute others."""
    model = make("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                # Pairs 0 and 1 of 4 stay. (0 and 2 would be the frequencies of a head of half the size.)
                projection.weight.view(-1, 2, 4, 32)[:, :, :2] *= 10
    pruned = pp.prune(model, inputs("llama"), ratio=0.5, axes="all")
    with pytest.raises(ModelError, match="buffer '.*inv_freq', which the config gives anew, is another one"):
        pruned.save_pretrained(tmp_path / "small")


def test_only_models_of_transformers(tmp_path: Path, net: nn.Module, example: torch.Tensor) -> None:
    pruned = pp.prune(net, example, ratio=0.5)
    with pytest.raises(ModelError, match=r"only a model of transformers has from_pretrained \(the result is a Net\)"):
        pruned.save_pretrained(tmp_path / "small")


def test_it_can_be_found() -> None:
    assert "save_pretrained" in str(pp.save.__doc__)
    assert "save_pretrained" in str(pp.Pruned.__doc__)
    assert "from_pretrained" in str(pp.Pruned.save_pretrained.__doc__)
