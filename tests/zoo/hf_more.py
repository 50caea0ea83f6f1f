"""Further models of transformers: decoders of today, speech, pictures with points or words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import Entry, normal, seeded, tokens

WORDS = 99


def words() -> dict[str, Tensor]:
    return {"input_ids": tokens(WORDS, 2, 8)}


DECODER = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 41,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARED = {**DECODER, "num_key_value_heads": 2, "head_dim": 10}
GEMMA = {"query_pre_attn_scalar": 10, "sliding_window": 4}
EXPERTS = {"moe_intermediate_size": 14, "num_experts_per_tok": 2, "num_experts": 4}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}


def built(kind: str, purpose: str, settings: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """A model of a configuration, whose class has the same first name."""

    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**settings)
        return getattr(transformers, f"{kind}{purpose}")(config)

    return build


DECODERS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "falcon, one key-value head": (
        "Falcon",
        {**DECODER, "ffn_hidden_size": 44, "multi_query": True},
        {"heads of queries": 2 * 4, "ffn": 88},
    ),
    "falcon, new decoder": (
        "Falcon",
        {**DECODER, "ffn_hidden_size": 44, "new_decoder_architecture": True, "num_kv_heads": 2},
        {"heads": 4, "ffn": 88},
    ),
    "bloom": (
        "Bloom",
        {**DECODER, "n_head": 4, "n_layer": 2},
        {"width of heads": 2 * 8, "ffn": 2 * 4 * 32},
    ),
    "gpt-neox": ("GPTNeoX", DECODER, {"heads": 8, "ffn": 88}),
    "gemma 2": ("Gemma2", {**SHARED, **GEMMA}, {"heads": 4, "ffn": 88}),
    "olmo 2": ("Olmo2", SHARED, {"width of values": 2 * 10, "ffn": 88}),
    "cohere": ("Cohere", SHARED, {"heads": 4, "ffn": 88}),
    "granite": ("Granite", SHARED, {"heads": 4, "ffn": 88}),
    "stablelm": ("StableLm", SHARED, {"heads": 4, "ffn": 88}),
    "phi": ("Phi", DECODER, {"heads": 8, "ffn": 88}),
    "qwen2 with experts": (
        "Qwen2Moe",
        {**SHARED, **EXPERTS, "experts_implementation": "batched_mm",
         "shared_expert_intermediate_size": 18},
        {"heads": 4, "neurons of experts": 28, "shared": 36},
    ),
    "qwen3 with experts": (
        "Qwen3Moe",
        {**SHARED, **EXPERTS, "experts_implementation": "eager"},
        {"heads": 4, "neurons of experts": 28},
    ),
    "deepseek v3": (
        "DeepseekV3",
        {
            **DECODER, "moe_intermediate_size": 14, "num_experts_per_tok": 2,
            "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
            "kv_lora_rank": 9, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
            "v_head_dim": 7, "num_key_value_heads": 4, "experts_implementation": "batched_mm",
        },
        {"heads": 8, "ffn": 44, "neurons of experts": 14, "shared": 14},
    ),
    "mamba 2": (
        "Mamba2",
        {**DECODER, "num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 1, "expand": 2,
         "chunk_size": 4, "time_step_rank": 3},
        {"states": 12},
    ),
    "hf rwkv": ("Rwkv", {**DECODER, "attention_hidden_size": 32, "rescale_every": 1},
                 {"channels": 64, "ffn": 88}),
}  # fmt: skip


def _without_cache(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "use_cache": False}


def gemma3() -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**SHARED, use_cache=False, **GEMMA))


def llava() -> nn.Module:
    """A picture's patches stand where the text has a word for them."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    vision = CLIPVisionConfig(
        hidden_size=20, intermediate_size=26, num_hidden_layers=2, num_attention_heads=4,
        image_size=8, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(**{**SHARED, "use_cache": False})
    return Llava(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=98, vision_feature_layer=-1
        )
    )


def picture_and_words() -> dict[str, Tensor]:
    ids = tokens(WORDS - 1, 2, 9)
    ids[:, 1:5] = 98
    return {"input_ids": ids, "pixel_values": normal(2, 3, 8, 8)()}


def sam() -> nn.Module:
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig
    from transformers import SamVisionConfig as Vision

    vision = Vision(
        hidden_size=24, output_channels=16, num_hidden_layers=2, num_attention_heads=3,
        image_size=32, patch_size=8, window_size=3, num_pos_feats=8, mlp_dim=30,
        global_attn_indexes=[1],
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(
        hidden_size=16, image_size=32, patch_size=8, mask_input_channels=8
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=22, num_attention_heads=2, iou_head_hidden_dim=13
    )
    return SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )


def pictures_and_points() -> dict[str, Tensor]:
    return {
        "pixel_values": normal(2, 3, 32, 32)(),
        "input_points": 8 * normal(2, 1, 1, 2)() + 16,
        "input_labels": torch.ones(2, 1, 1, dtype=torch.long),
    }


SPEECH = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 38,
    "conv_dim": (10, 12, 14),
    "conv_stride": (4, 3, 2),
    "conv_kernel": (7, 3, 2),
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 3,
    "vocab_size": 31,
    "pad_token_id": 0,
}


VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
    "mlp_ratio": 2,
}
MOBILE = {
    "hidden_sizes": [12, 16, 20],
    "num_attention_heads": 2,
    "neck_hidden_sizes": [8, 8, 12, 16, 16, 20, 32],
    "image_size": 64,
    "num_labels": 5,
}
MOBILE_UNITS = {
    "stem and last": 8 + 32,
    "expanded": 2 * 32 + 3 * 48 + 2 * 64,
    "reduced": 12 + 16 + 16 + 20,
    "in front of, behind and beside transformers": 3 * (16 + 16 + 20),
    "all of a transformer's width": 3,
    "heads": 2 * (2 + 4 + 3),
    "ffn": 2 * 24 + 4 * 32 + 3 * 40,
}


def sounds() -> dict[str, Any]:
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[0, 250:] = 0
    return {"an attention mask": {"input_values": normal(2, 400)(), "attention_mask": mask}}


def _entry(name: str, build: Any, example: Any, units: dict[str, int], **more: Any) -> Entry:
    return Entry(name, seeded(build), example, lambda: units, None, needs="transformers", **more)


def _speech(name: str, kind: str, units: dict[str, int], **changes: Any) -> Entry:
    build = built(kind, "ForCTC", {**SPEECH, **changes})
    return _entry(name, build, normal(2, 400), units, calls=sounds)


ENTRIES = [
    *(
        _entry(name, built(kind, "ForCausalLM", _without_cache(settings)), words, units)
        for name, (kind, settings, units) in DECODERS.items()
    ),
    _entry("gemma 3", gemma3, words, {"heads": 4, "ffn": 88}),
    _entry("llava", llava, picture_and_words,
           {"heads": 2 * 4 + 4, "ffn": 2 * 26 + 88, "projector": 32},
           note="the gate tries other ids, in which there are other numbers of pictures' words"),
    _entry("sam", sam, pictures_and_points,
           {"heads": 2 * 3 + 7 * 2, "ffn": 60 + 44, "scale of masks": 2, "towers": 4 * 2 * 16,
            "scores": 2 * 13},
           calls=lambda: {"one mask": {**pictures_and_points(), "multimask_output": False}}),
    _speech("hubert", "Hubert", {"channels": 22, "heads": 8, "ffn": 76}),
    _speech("wavlm", "WavLM", {"channels": 22, "width of heads": 2 * (6 + 6 + 4), "ffn": 76}),
    _speech("hf conformer", "Wav2Vec2Conformer",
            {"channels": 22, "heads": 8, "ffn": 152, "convolution": 48},
            conv_depthwise_kernel_size=5, position_embeddings_type="rotary"),
    _entry("dinov2", built("Dinov2", "ForImageClassification", VISION), normal(2, 3, 12, 12),
           {"heads": 8, "ffn": 96}),
    _entry("mobilevit", built("MobileViT", "ForImageClassification", MOBILE),
           normal(2, 3, 64, 64), MOBILE_UNITS),
]  # fmt: skip
