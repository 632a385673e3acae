"""Real classes of transformers in tiny configurations, with random weights that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 50


def transformers() -> Any:
    """The library; the test is skipped without it."""
    from zoo.networks.entry import torchvision_operators

    torchvision_operators()  # it imports torchvision where that is installed
    return pytest.importorskip("transformers")


def ids(batch: int = 2, length: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def pixels() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def sound() -> Tensor:
    return torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(1))


_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    **_TOKENS,
}

CONFIGS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
        },
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, **_TOKENS},
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 24,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            **_TOKENS,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "num_layers": 2,
            "num_heads": 4,
            "d_kv": 4,
            "d_ff": 24,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "image_size": 16,
            "patch_size": 8,
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 32,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
            **_TOKENS,
        },
    ),
}

INPUTS: Mapping[str, Callable[[], dict[str, Tensor]]] = {
    "vit": lambda: {"pixel_values": pixels()},
    "t5": lambda: {"input_ids": ids(), "decoder_input_ids": ids(2, 5)},
    "whisper": lambda: {"input_features": sound(), "decoder_input_ids": ids(2, 5)},
}


def make(name: str) -> Any:
    """In eval mode, the same each time. Wide weights: logits differ by more than rounding."""
    library = transformers()
    kind, config, options = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(library, kind)(getattr(library, config)(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5 * 1.5)
                else:
                    parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def inputs(name: str) -> dict[str, Tensor]:
    return INPUTS.get(name, lambda: {"input_ids": ids()})()


def first(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """The first output."""
    with torch.no_grad():
        output = model(**given)
    result: Tensor = output if isinstance(output, Tensor) else output[0]
    return result


def silenced(model: Any, kept: Mapping[str, Any]) -> Any:
    """The original with everything that was removed set to zero: the same function, for inner axes."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in kept.items():
            for dim, entries in enumerate(dims):
                if entries is not None:
                    gone = sorted(set(range(tensors[name].shape[dim])) - set(entries.tolist()))
                    tensors[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0.0)
    return model
