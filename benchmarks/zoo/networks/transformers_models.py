"""transformers: the real classes with tiny configurations and random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from zoo.networks.entry import Built, Entry, image, tokens, torchvision_operators

VOCABULARY, LENGTH = 97, 8
_COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": 0}
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_GQA = _COMMON | _BERT | {"num_key_value_heads": 2, "use_cache": False}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False, "vocab_size": VOCABULARY}
_VISION = _BERT | {"image_size": 32, "patch_size": 8}
_ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "use_cache": False,
}
_SPEECH = _BERT | {
    "vocab_size": 31,
    "conv_dim": (16, 24, 24),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}


def text(mask: bool = False) -> dict[str, Any]:
    """Token ids; with `mask`, some positions are padding."""
    given: dict[str, Any] = {"input_ids": tokens(LENGTH, VOCABULARY)}
    if mask:
        given["attention_mask"] = torch.ones(2, LENGTH, dtype=torch.long)
        given["attention_mask"][1, 5:] = 0
    return given


def both() -> dict[str, Any]:
    return {**text(), "decoder_input_ids": tokens(6, VOCABULARY)}


def pixels() -> dict[str, Any]:
    return {"pixel_values": image(32)}


def waves() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 800)}


def package() -> Any:
    torchvision_operators()  # it imports torchvision where that is installed
    import transformers

    return transformers


def of(name: str, inputs: Callable[[], dict[str, Any]], config: dict[str, Any], settings: str = "") -> Built:
    """`name` of transformers on `config`; `settings` names the configuration class where it is called differently."""
    transformers = package()
    model = getattr(transformers, name)
    made = getattr(transformers, settings)(**config) if settings else model.config_class(**config)
    return model(made), inputs()


def detr() -> Built:
    transformers = package()
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        num_queries=5,
        **_ENCODER_DECODER,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
    )
    given = {"pixel_values": image(64), "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)}
    return transformers.DetrForObjectDetection(config), given


def two_towers(kind: str) -> Built:
    """CLIP and SigLIP: an image tower and a text tower."""
    transformers = package()
    text_side = _COMMON | _BERT | {"bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(text_config=text_side, vision_config=_VISION, projection_dim=24)
    given = {"input_ids": tokens(LENGTH, VOCABULARY), "pixel_values": image(32)}
    return getattr(transformers, f"{kind}Model")(config), given


def whisper() -> Built:
    settings = {"vocab_size": VOCABULARY, "num_mel_bins": 20, "max_source_positions": 16, "max_target_positions": 16}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

    def given() -> dict[str, Any]:
        return {"input_features": torch.randn(2, 20, 32), "decoder_input_ids": tokens(6, VOCABULARY)}

    return of("WhisperForConditionalGeneration", given, _ENCODER_DECODER | settings | special)


def speech_to_text() -> Built:
    settings = {
        "vocab_size": VOCABULARY,
        "max_source_positions": 64,
        "max_target_positions": 16,
        "conv_channels": 24,
        "input_feat_per_channel": 20,
    }

    def given() -> dict[str, Any]:
        return {"input_features": torch.randn(2, 32, 20), "decoder_input_ids": tokens(6, VOCABULARY)}

    return of("Speech2TextForConditionalGeneration", given, _ENCODER_DECODER | settings)


def grouped(entry: Entry) -> Entry:
    """The default kernel for stacked experts, which takes single precision only."""
    return replace(entry, single=True)


def network(name: str, inputs: Callable[[], dict[str, Any]], family: str, settings: str = "", **config: Any) -> Entry:
    return Entry(partial(of, name, inputs, config, settings), f"transformers {family}", "transformers")


_masked = partial(text, mask=True)
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MIXTRAL = _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN2_MOE = _GQA | _MOE | {"shared_expert_intermediate_size": 40}
_QWEN3_MOE = _GQA | _MOE | {"head_dim": 8}

TABLE: dict[str, Entry] = {
    "transformers/bert": network("BertForSequenceClassification", _masked, "encoder", **_COMMON, **_BERT, num_labels=5),
    "transformers/bert_mlm": network("BertForMaskedLM", text, "encoder", **_COMMON, **_BERT),
    "transformers/roberta": network("RobertaForTokenClassification", text, "encoder", **_COMMON, **_BERT, num_labels=5),
    "transformers/distilbert": network(
        "DistilBertForSequenceClassification",
        _masked,
        "encoder",
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=32,
        num_labels=5,
    ),
    "transformers/electra": network(
        "ElectraForSequenceClassification", _masked, "encoder", **_COMMON, **_BERT, embedding_size=24, num_labels=5
    ),
    "transformers/albert": network(
        "AlbertForSequenceClassification", _masked, "encoder", **_COMMON, **_BERT, embedding_size=24, num_labels=5
    ),
    "transformers/deberta_v2": network(
        "DebertaV2ForSequenceClassification",
        text,
        "encoder",
        **_COMMON,
        **_BERT,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        num_labels=5,
    ),
    "transformers/mpnet": network("MPNetForSequenceClassification", text, "encoder", **_COMMON, **_BERT, num_labels=5),
    "transformers/gpt2": network("GPT2LMHeadModel", text, "decoder", **_GPT2),
    "transformers/gpt_neo": network(
        "GPTNeoForCausalLM",
        text,
        "decoder",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
        window_size=4,
        use_cache=False,
    ),
    "transformers/gpt_neox": network("GPTNeoXForCausalLM", text, "decoder", **_COMMON, **_BERT, use_cache=False),
    "transformers/opt": network(
        "OPTForCausalLM",
        text,
        "decoder",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=32,
        word_embed_proj_dim=24,
        use_cache=False,
    ),
    "transformers/bloom": network(
        "BloomForCausalLM", text, "decoder", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, use_cache=False
    ),
    "transformers/llama": network("LlamaForCausalLM", text, "decoder", **_GQA),
    "transformers/mistral": network("MistralForCausalLM", text, "decoder", **_GQA, sliding_window=4),
    "transformers/qwen2": network("Qwen2ForCausalLM", text, "decoder", **_GQA),
    "transformers/qwen3": network("Qwen3ForCausalLM", text, "decoder", **_GQA, head_dim=8),
    "transformers/gemma2": network(
        "Gemma2ForCausalLM", text, "decoder", **_GQA, head_dim=8, query_pre_attn_scalar=8, sliding_window=4
    ),
    "transformers/gemma3": network(
        "Gemma3ForCausalLM",
        text,
        "decoder",
        **_GQA,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=4,
        settings="Gemma3TextConfig",
    ),
    "transformers/phi3": network("Phi3ForCausalLM", text, "decoder", **_GQA),
    "transformers/mixtral": grouped(network("MixtralForCausalLM", text, "mixture of experts", **_MIXTRAL)),
    "transformers/mixtral_batched": network(
        "MixtralForCausalLM", text, "mixture of experts", **_MIXTRAL, experts_implementation="batched_mm"
    ),
    "transformers/qwen2_moe": grouped(network("Qwen2MoeForCausalLM", text, "mixture of experts", **_QWEN2_MOE)),
    "transformers/qwen2_moe_batched": network(
        "Qwen2MoeForCausalLM", text, "mixture of experts", **_QWEN2_MOE, experts_implementation="batched_mm"
    ),
    "transformers/qwen3_moe": grouped(network("Qwen3MoeForCausalLM", text, "mixture of experts", **_QWEN3_MOE)),
    "transformers/qwen3_moe_batched": network(
        "Qwen3MoeForCausalLM", text, "mixture of experts", **_QWEN3_MOE, experts_implementation="batched_mm"
    ),
    "transformers/mamba": network(
        "MambaForCausalLM",
        text,
        "state space",
        vocab_size=VOCABULARY,
        hidden_size=24,
        state_size=4,
        num_hidden_layers=2,
        time_step_rank=6,
        use_cache=False,
    ),
    "transformers/t5": network(
        "T5ForConditionalGeneration",
        both,
        "encoder-decoder",
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        use_cache=False,
    ),
    "transformers/t5_gated": network(
        "T5ForConditionalGeneration",
        both,
        "encoder-decoder",
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        use_cache=False,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
    "transformers/bart": network(
        "BartForConditionalGeneration", both, "encoder-decoder", **_ENCODER_DECODER, **_COMMON
    ),
    "transformers/vit": network("ViTForImageClassification", pixels, "vision", **_VISION, num_labels=5),
    "transformers/deit": network("DeiTForImageClassification", pixels, "vision", **_VISION, num_labels=5),
    "transformers/dinov2": network("Dinov2ForImageClassification", pixels, "vision", **_VISION, num_labels=5),
    "transformers/swin": network(
        "SwinForImageClassification",
        pixels,
        "vision",
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    ),
    "transformers/segformer": network(
        "SegformerForSemanticSegmentation",
        lambda: {"pixel_values": image(64)},
        "vision",
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=24,
        num_labels=5,
    ),
    "transformers/detr": Entry(detr, "transformers vision", "transformers"),
    "transformers/clip": Entry(partial(two_towers, "CLIP"), "transformers two towers", "transformers"),
    "transformers/siglip": network(
        "SiglipModel",
        lambda: {**text(), **pixels()},
        "two towers",
        text_config=_COMMON | _BERT | {"projection_size": 32},
        vision_config=_VISION,
    ),
    "transformers/wav2vec2": network("Wav2Vec2ForCTC", waves, "speech", **_SPEECH),
    "transformers/wav2vec2_layer_norm": network(
        "Wav2Vec2ForCTC", waves, "speech", **_SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "transformers/hubert": network("HubertForCTC", waves, "speech", **_SPEECH),
    "transformers/whisper": Entry(whisper, "transformers speech", "transformers"),
    "transformers/speech_to_text": Entry(speech_to_text, "transformers speech", "transformers"),
}
