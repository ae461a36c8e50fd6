"""Small networks of Hugging Face's transformers, with random weights, and inputs for them."""

from typing import Any

import torch
import transformers
from torch import nn

from dynopt_ray.structure import Inputs

# The names that most configurations have for these sizes, or map to their own names.
_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
_GROUPED = {"num_key_value_heads": 2}
_PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 2 / 3}
_BOTH = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_T5 = {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
_IMAGE = {"image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}

MODELS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {"labels": "tokens"},
    "RobertaForSequenceClassification": {"labels": "classes", "pad_token_id": 0},
    "DistilBertForSequenceClassification": {
        "labels": "classes",
        "dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 80,
    },
    "AlbertForMaskedLM": {"embedding_size": 16},
    "ElectraForMaskedLM": {"labels": "tokens", "embedding_size": 16},
    "DebertaForMaskedLM": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2ForMaskedLM": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "MPNetForMaskedLM": {},
    "ModernBertForMaskedLM": {"pad_token_id": 0, "global_attn_every_n_layers": 2},
    "GPT2LMHeadModel": {"labels": "tokens", **_IDS},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], **_IDS},
    "GPTJForCausalLM": {"rotary_dim": 4, **_IDS},
    "GPTNeoXForCausalLM": {"rotary_pct": 0.5, **_IDS},
    "GPTBigCodeForCausalLM": {**_IDS},
    "OPTForCausalLM": {"ffn_dim": 80, "word_embed_proj_dim": 48, **_IDS},
    "BloomForCausalLM": {"n_layer": 2, "n_head": 4, **_IDS},
    "FalconForCausalLM": {"multi_query": True, **_IDS},
    "CodeGenForCausalLM": {"rotary_dim": 4, **_IDS},
    "LlamaForCausalLM": {"labels": "tokens", **_GROUPED, **_IDS},
    "MistralForCausalLM": {**_GROUPED, **_IDS},
    "Qwen2ForCausalLM": {**_GROUPED, **_IDS},
    "Qwen3ForCausalLM": {"head_dim": 12, **_GROUPED, **_IDS},
    "GemmaForCausalLM": {"head_dim": 12, **_GROUPED, **_IDS},
    "Gemma2ForCausalLM": {"head_dim": 12, **_GROUPED, **_IDS},
    "Gemma3ForCausalLM": {"head_dim": 12, **_GROUPED, **_IDS},
    "PhiForCausalLM": {"rope_parameters": _PARTIAL, **_IDS},
    "Phi3ForCausalLM": {**_GROUPED, **_IDS},
    "StableLmForCausalLM": {"rope_parameters": _PARTIAL, **_GROUPED, **_IDS},
    "CohereForCausalLM": {**_GROUPED, **_IDS},
    "Olmo2ForCausalLM": {**_GROUPED, **_IDS},
    "GraniteForCausalLM": {**_GROUPED, **_IDS},
    "Starcoder2ForCausalLM": {**_GROUPED, **_IDS},
    "SmolLM3ForCausalLM": {**_GROUPED, **_IDS},
    "MixtralForCausalLM": {"num_local_experts": 3, **_GROUPED, **_IDS},
    "MambaForCausalLM": {"state_size": 6, "time_step_rank": 5, **_IDS},
    "T5ForConditionalGeneration": {"labels": "tokens", **_T5, **_IDS},
    "BartForConditionalGeneration": {"labels": "tokens", **_BOTH, **_IDS},
    "PegasusForConditionalGeneration": {"labels": "tokens", **_BOTH, **_IDS},
    "MarianMTModel": {"labels": "tokens", **_BOTH, **_IDS},
    "M2M100ForConditionalGeneration": {"labels": "tokens", **_BOTH, **_IDS},
    "WhisperForConditionalGeneration": {
        "labels": "tokens",
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "max_target_positions": 64,
        "inputs": {"input_features": (2, 8, 24)},
        **_BOTH,
        **_IDS,
    },
    "Wav2Vec2ForSequenceClassification": {
        "conv_dim": (16, 16),
        "conv_kernel": (10, 3),
        "conv_stride": (5, 2),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0,
        "inputs": {"input_values": (2, 400)},
    },
    "ViTForImageClassification": {"labels": "classes", **_IMAGE},
    "DeiTForImageClassificationWithTeacher": {**_IMAGE},
    "Dinov2ForImageClassification": {**_IMAGE},
    "SwinForImageClassification": {"window_size": 4, **_SWIN},
    "Swinv2ForImageClassification": {"window_size": 4, **_SWIN},
    "ConvNextForImageClassification": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "SegformerForSemanticSegmentation": {
        "hidden_sizes": [8, 16, 20, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "decoder_hidden_size": 16,
    },
    "CLIPModel": {"towers": True},
    "SiglipModel": {"towers": True},
}
"""Class -> options of its configuration; `labels`, `inputs` and `towers` are for `built`."""


class OnlyLogits(nn.Module):
    """Returns only the logits and the loss, because the width of every returned tensor is fixed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Any) -> tuple[Any, ...]:
        """Return the loss, if labels are given, and the logits."""
        output = self.network(**inputs)
        keys = ("loss", "logits", "logits_per_image", "logits_per_text")
        return tuple(output[key] for key in keys if output.get(key) is not None)


def names() -> list[str]:
    """Return each network with each implementation of attention that it has."""
    return [
        f"{name}:{attention}"
        for name in MODELS
        for attention in ("eager", "sdpa")
        if attention == "eager" or getattr(transformers, name)._supports_sdpa
    ]


def built(name: str, attention: str) -> tuple[nn.Module, Inputs]:
    """Return a network, and inputs for it."""
    options = dict(MODELS[name])
    labels, shapes = options.pop("labels", None), options.pop("inputs", None)
    if options.pop("towers", False):
        small = {k: v for k, v in _SIZES.items() if k != "vocab_size"}
        options["text_config"] = {**_SIZES, "projection_dim": 24, **_IDS}
        options["vision_config"] = {**small, **_IMAGE, "projection_dim": 24}
        options["projection_dim"] = 24
    kind = getattr(transformers, name)
    sizes = {k: v for k, v in _SIZES.items() if not isinstance(options.get("depths"), list)}
    config = kind.config_class(**{**sizes, **options})
    config._attn_implementation = attention or "eager"
    model = OnlyLogits(kind(config))
    inputs = {key: torch.randn(*shape) for key, shape in (shapes or {}).items()}
    return model, {**inputs, **_given(model.network, labels)}


def _given(model: Any, labels: str | None) -> dict[str, Any]:
    """Return the tokens, images and labels that a model takes."""
    given: dict[str, Any] = {}
    tokens = torch.randint(3, 99, (2, 7))
    if model.main_input_name == "input_ids":
        given["input_ids"] = tokens
    if model.main_input_name == "pixel_values" or hasattr(model.config, "vision_config"):
        given["pixel_values"] = torch.randn(2, 3, 32, 32)
    if model.config.is_encoder_decoder and labels is None:
        given["decoder_input_ids"] = tokens
    if labels is not None:
        given["labels"] = tokens if labels == "tokens" else torch.tensor([0, 1])
    return given
