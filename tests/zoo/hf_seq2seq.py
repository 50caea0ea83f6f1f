"""Encoders with decoders, speech, and two towers (transformers)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import STREAM, Entry, normal, seeded, tokens

WORDS = 99
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def translation() -> dict[str, Tensor]:
    """A padded source and the target so far."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return {
        "input_ids": tokens(WORDS, 2, 9),
        "attention_mask": mask,
        "decoder_input_ids": tokens(WORDS, 2, 7),
    }


def t5_config(**changes: Any) -> Any:
    from transformers import T5Config

    return T5Config(
        **{
            "vocab_size": WORDS,
            "d_model": 36,
            "d_kv": 11,
            "d_ff": 50,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "use_cache": False,
            **ENDS,
            **changes,
        }
    )


def t5() -> nn.Module:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration(t5_config())


def gated_t5() -> nn.Module:
    from transformers import T5EncoderModel

    return T5EncoderModel(t5_config(feed_forward_proj="gated-gelu"))


def _t5_units() -> dict[str, int]:
    """All layers of a stack add one table of positions to their scores: a head goes from all.

    The decoder's attention to the encoder has no table, but one tensor of zeros with the heads'
    dimension, which its layers hand on as well.
    """
    c = t5_config()
    return {
        "heads of encoder, decoder, and between": 3 * c.num_heads,
        "ffn neurons": (c.num_layers + c.num_decoder_layers) * c.d_ff,
    }


def _gated_t5_units() -> dict[str, int]:
    c = t5_config()
    return {"heads": c.num_heads, "ffn neurons": c.num_layers * c.d_ff}


def bart_config() -> Any:
    from transformers import BartConfig

    return BartConfig(
        vocab_size=WORDS,
        d_model=36,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=6,
        encoder_ffn_dim=50,
        decoder_ffn_dim=46,
        max_position_embeddings=41,
        use_cache=False,
        forced_eos_token_id=2,
        **ENDS,
    )


def bart() -> nn.Module:
    from transformers import BartForConditionalGeneration

    return BartForConditionalGeneration(bart_config())


def _two_stacks(c: Any) -> dict[str, int]:
    """A decoder's layer attends twice: to itself, and to the encoder."""
    encoder = c.encoder_layers * c.encoder_attention_heads
    return {
        "heads": encoder + 2 * c.decoder_layers * c.decoder_attention_heads,
        "ffn neurons": c.encoder_layers * c.encoder_ffn_dim + c.decoder_layers * c.decoder_ffn_dim,
    }


def whisper_config() -> Any:
    from transformers import WhisperConfig

    return WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=10,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=50,
        decoder_ffn_dim=46,
        max_source_positions=13,
        max_target_positions=23,
        use_cache=False,
        begin_suppress_tokens=None,
        **ENDS,
    )


def whisper() -> nn.Module:
    from transformers import WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(whisper_config())


def speech() -> dict[str, Tensor]:
    """Whisper takes exactly twice as many frames as it has positions."""
    c = whisper_config()
    frames = 2 * c.max_source_positions
    return {
        "input_features": normal(2, c.num_mel_bins, frames)(),
        "decoder_input_ids": tokens(WORDS, 2, 7),
    }


def _whisper_units() -> dict[str, int]:
    """The first convolution's channels are not the stream, though there are as many."""
    c = whisper_config()
    return _two_stacks(c) | {"channels of the first convolution": c.d_model}


def wav2vec2_config() -> Any:
    from transformers import Wav2Vec2Config

    return Wav2Vec2Config(
        vocab_size=31,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=50,
        feat_extract_norm="group",
        conv_dim=(14, 15, 17),
        conv_stride=(4, 3, 2),
        conv_kernel=(7, 3, 2),
        num_conv_pos_embeddings=5,
        num_conv_pos_embedding_groups=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2ForCTC

    return Wav2Vec2ForCTC(wav2vec2_config())


def _wav2vec2_units() -> dict[str, int]:
    """A norm runs over the last convolution's channels; the first one's has a group for each."""
    c = wav2vec2_config()
    return {
        "channels": sum(c.conv_dim[:-1]),
        "heads": c.num_hidden_layers * c.num_attention_heads,
        "ffn neurons": c.num_hidden_layers * c.intermediate_size,
    }


def clip_config() -> Any:
    from transformers import CLIPConfig

    text = {
        "vocab_size": WORDS,
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 11,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 98,
    }
    vision = {
        "hidden_size": 40,
        "intermediate_size": 54,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "image_size": 12,
        "patch_size": 4,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=22)


def clip() -> nn.Module:
    from transformers import CLIPModel

    return CLIPModel(clip_config())


def caption() -> dict[str, Tensor]:
    """Images, and texts that end in the last word."""
    ids = tokens(WORDS - 1, 2, 8)
    ids[:, -1] = WORDS - 1
    return {
        "input_ids": ids,
        "pixel_values": normal(2, 3, 12, 12)(),
        "attention_mask": torch.ones_like(ids),
    }


def _clip_units() -> dict[str, int]:
    c = clip_config()
    towers = (c.text_config, c.vision_config)
    return {
        "heads": sum(t.num_hidden_layers * t.num_attention_heads for t in towers),
        "ffn neurons": sum(t.num_hidden_layers * t.intermediate_size for t in towers),
    }


ROWS = "looked up by word or position; the width is the stream"
T5 = {
    "shared.weight:[01]": ROWS,
    "*layer_norm.weight:0": STREAM,
    "*.[qkv].weight:1": STREAM,
    "*.o.weight:0": STREAM,
    "*.wi*.weight:1": STREAM,
    "*.wo.weight:0": STREAM,
    "*.relative_attention_bias.weight:0": "a row per distance",
}
LAYERS = {
    "*.self_attn*norm.*:0": STREAM,
    "*.final_layer_norm.*:0": STREAM,
    "*.[qkv]_proj.weight:1": STREAM,
    "*.out_proj.*:0": STREAM,
    "*.fc1.weight:1": STREAM,
    "*.fc2.*:0": STREAM,
}
CROSS = {"*.encoder_attn_layer_norm.*:0": STREAM, "*.embed_positions.weight:[01]": ROWS}
BART = LAYERS | CROSS | {"*.shared.weight:[01]": ROWS, "*.layernorm_embedding.*:0": STREAM}
WHISPER = (
    LAYERS
    | CROSS
    | {
        "*.embed_tokens.weight:[01]": ROWS,
        "*coder.layer_norm.*:0": STREAM,
        "*.conv1.weight:[12]": "reads the model's input, at a position in a kernel",
        "*.conv2.weight:[02]": "a position in a kernel; " + STREAM,
        "*.conv2.bias:0": STREAM,
    }
)
WAV2VEC2 = {
    "*.masked_spec_embed:0": "read in training alone, in place of the stream",
    "*.conv_layers.*.conv.weight:2": "a position in a kernel",
    "*.conv_layers.2.conv.weight:0": "a norm runs over it",
    "*.feature_projection.*:[01]": STREAM,
    "*.pos_conv_embed.*:[012]": "a position in a kernel; " + STREAM,
    "*.encoder.*layer_norm.*:0": STREAM,
    "*.[qkv]_proj.weight:1": STREAM,
    "*.out_proj.*:0": STREAM,
    "*.intermediate_dense.weight:1": STREAM,
    "*.output_dense.*:0": STREAM,
    "lm_head.*:[01]": "is the model's output; " + STREAM,
}
CLIP = {
    "*embedding*:[0123]": "looked up or read from the input; " + STREAM,
    "*_projection.weight:[01]": "is the model's output; " + STREAM,
    "*layer_norm*:0": STREAM,
    "*.post_layernorm.*:0": STREAM,
    "*.pre_layrnorm.*:0": STREAM,
    "*.[qkv]_proj.weight:1": STREAM,
    "*.out_proj.*:0": STREAM,
    "*.fc1.weight:1": STREAM,
    "*.fc2.*:0": STREAM,
}


def _entry(name: str, build: Any, example: Any, units: Any, pinned: Any, **more: Any) -> Entry:
    return Entry(name, seeded(build), example, units, pinned, needs="transformers", **more)


ENTRIES = [
    _entry("t5", t5, translation, _t5_units, T5, core=True),
    _entry(
        "t5, gated encoder",
        gated_t5,
        lambda: {"input_ids": tokens(WORDS, 2, 9)},
        _gated_t5_units,
        T5,
    ),
    _entry("bart", bart, translation, lambda: _two_stacks(bart_config()), BART),
    _entry("whisper", whisper, speech, _whisper_units, WHISPER),
    _entry("wav2vec2", wav2vec2, normal(2, 400), _wav2vec2_units, WAV2VEC2),
    _entry("clip", clip, caption, _clip_units, CLIP),
]
