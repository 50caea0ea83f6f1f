"""Vision models made of attention (transformers)."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.entry import OUTPUT, STREAM, Entry, normal, seeded


def _like_vit(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 50,
        "image_size": 12,
        "patch_size": 4,
        "num_labels": 5,
        **changes,
    }


def _vit_units(c: Any) -> dict[str, int]:
    return {
        "heads": c.num_hidden_layers * c.num_attention_heads,
        "ffn neurons": c.num_hidden_layers * c.intermediate_size,
    }


def vit_config() -> Any:
    from transformers import ViTConfig

    return ViTConfig(**_like_vit())


def vit() -> nn.Module:
    from transformers import ViTForImageClassification

    return ViTForImageClassification(vit_config())


def deit_config() -> Any:
    from transformers import DeiTConfig

    return DeiTConfig(**_like_vit(num_attention_heads=3, qkv_bias=False))


def deit() -> nn.Module:
    from transformers import DeiTForImageClassificationWithTeacher

    return DeiTForImageClassificationWithTeacher(deit_config())


def beit_config() -> Any:
    from transformers import BeitConfig

    return BeitConfig(**_like_vit(use_relative_position_bias=True, layer_scale_init_value=0.1))


def beit() -> nn.Module:
    from transformers import BeitForImageClassification

    return BeitForImageClassification(beit_config())


def yolos_config() -> Any:
    from transformers import YolosConfig

    return YolosConfig(
        **_like_vit(
            image_size=[12, 16],
            num_detection_tokens=6,
            use_mid_position_embeddings=True,
            num_hidden_layers=3,
        )
    )


def yolos() -> nn.Module:
    from transformers import YolosForObjectDetection

    return YolosForObjectDetection(yolos_config())


def _yolos_units() -> dict[str, int]:
    """Classes and boxes come from perceptrons of three layers."""
    c = yolos_config()
    return _vit_units(c) | {"neurons of the heads": 2 * 2 * c.hidden_size}


def swin_config() -> Any:
    from transformers import SwinConfig

    return SwinConfig(**_windows())


def swin() -> nn.Module:
    from transformers import SwinForImageClassification

    return SwinForImageClassification(swin_config())


def swinv2_config() -> Any:
    from transformers import Swinv2Config

    return Swinv2Config(**_windows())


def swinv2() -> nn.Module:
    from transformers import Swinv2ForImageClassification

    return Swinv2ForImageClassification(swinv2_config())


def _windows() -> dict[str, Any]:
    return {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [3, 4],
        "window_size": 4,
        "mlp_ratio": 3.0,
        "num_labels": 5,
    }


def _swin_units(c: Any) -> dict[str, int]:
    """A stage is twice as wide as the one before it."""
    return {
        "heads": sum(d * h for d, h in zip(c.depths, c.num_heads, strict=True)),
        "ffn neurons": sum(
            d * int(c.mlp_ratio * c.embed_dim * 2**stage) for stage, d in enumerate(c.depths)
        ),
    }


def _swinv2_units() -> dict[str, int]:
    """Each block computes its biases from a buffer of two coordinates by 512 neurons.

    Both numbers are written in the source. A coordinate is a column of a buffer and of a weight,
    so it can go as well.
    """
    c = swinv2_config()
    return _swin_units(c) | {
        "neurons of the position biases": 512 * sum(c.depths),
        "coordinates of the position biases": 2 * sum(c.depths),
    }


def segformer_config() -> Any:
    from transformers import SegformerConfig

    return SegformerConfig(
        num_encoder_blocks=2,
        depths=[2, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[12, 20],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[3, 4],
        mlp_ratios=[3, 2],
        decoder_hidden_size=14,
        num_labels=5,
    )


def segformer() -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(segformer_config())


def _segformer_units() -> dict[str, int]:
    """The decoder projects each stage, and fuses them; a depthwise layer follows its neurons."""
    c = segformer_config()
    layers = list(zip(c.depths, c.hidden_sizes, c.mlp_ratios, strict=True))
    return {
        "heads": sum(d * h for d, h in zip(c.depths, c.num_attention_heads, strict=True)),
        "ffn neurons": sum(depth * width * ratio for depth, width, ratio in layers),
        "projected": c.num_encoder_blocks * c.decoder_hidden_size,
        "fused": c.decoder_hidden_size,
    }


def levit_config() -> Any:
    from transformers import LevitConfig

    return LevitConfig(
        image_size=80,
        hidden_sizes=[24, 30, 36],
        num_attention_heads=[3, 4, 5],
        key_dim=[6, 5, 4],
        depths=[1, 2, 1],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
        num_labels=5,
    )


def levit() -> nn.Module:
    from transformers import LevitForImageClassification

    return LevitForImageClassification(levit_config())


def _levit_units() -> dict[str, int]:
    """Batch norms leave the streams free; between two stages stands attention of its own shape.

    The stem's first three convolutions have an eighth, a quarter and half of the width. The
    attention between stages has as many heads as keys of the first stage fit into the width before
    it, and behind it stands a perceptron of twice the width after it.
    """
    c = levit_config()
    widths = c.hidden_sizes
    layers = list(zip(widths, c.depths, c.mlp_ratio, strict=True))
    between = sum(w // c.key_dim[0] for w in widths[:-1])
    return {
        "stem": sum(widths[0] // part for part in (8, 4, 2)),
        "streams": sum(widths),
        "heads": sum(d * h for d, h in zip(c.depths, c.num_attention_heads, strict=True)),
        "heads between stages": between,
        "ffn neurons": sum(depth * width * ratio for width, depth, ratio in layers)
        + sum(2 * width for width in widths[1:]),
    }


def _entry(
    name: str, build: Any, units: Any, pinned: dict[str, str], size: tuple[int, int], **more: Any
) -> Entry:
    images = normal(2, 3, *size)
    return Entry(name, seeded(build), images, units, pinned, needs="transformers", **more)


READS = "reads the model's input or is looked up by position; " + STREAM
ENDS = {
    "*embeddings.*:[0123]": READS,
    "*layernorm*:0": STREAM,
    "*classifier.*:[01]": "is the model's output; " + STREAM,
}
FFN = {"*.mlp.fc1.weight:1": STREAM, "*.mlp.fc2.*:0": STREAM}
ATTENTION = {"*.[qkv]_proj.weight:1": STREAM, "*.o_proj.*:0": STREAM}
OLD_STYLE = {
    "*.output.dense.*:0": STREAM,
    "*.intermediate.dense.weight:1": STREAM,
}
VIT = ENDS | FFN | ATTENTION
TABLE = {"*.relative_position_bias_table:0": "a row per distance"}
MERGE = {"*.downsample.*:[01]": STREAM}

ENTRIES = [
    _entry("vit", vit, lambda: _vit_units(vit_config()), VIT, (12, 12)),
    _entry("deit", deit, lambda: _vit_units(deit_config()), VIT, (12, 12)),
    _entry(
        "beit",
        beit,
        lambda: _vit_units(beit_config()),
        VIT | TABLE | {"*.lambda_[12]:0": STREAM},
        (12, 12),
    ),
    _entry(
        "yolos",
        yolos,
        _yolos_units,
        OLD_STYLE
        | {
            "*embeddings.*:[0123]": READS,
            "*.mid_position_embeddings:[023]": "one per layer and position; " + STREAM,
            "*layernorm*:0": STREAM,
            "*.attention.attention.*.weight:1": STREAM,
            "bbox_predictor.layers.0.weight:1": STREAM,
            "bbox_predictor.layers.2.*:0": OUTPUT,
            "class_labels_classifier.layers.0.weight:1": STREAM,
            "class_labels_classifier.layers.2.*:0": OUTPUT,
        },
        (12, 16),
    ),
    _entry(
        "swin", swin, lambda: _swin_units(swin_config()), VIT | TABLE | MERGE, (16, 16), core=True
    ),
    _entry(
        "swin v2",
        swinv2,
        _swinv2_units,
        ENDS | OLD_STYLE | MERGE | {"*.self.[kqv]*.weight:1": STREAM},
        (16, 16),
    ),
    _entry(
        "segformer",
        segformer,
        _segformer_units,
        FFN
        | ATTENTION
        | {
            "*.patch_embeddings.*:[0123]": READS,
            "*layer*norm*:0": STREAM,
            "*.sequence_reduction.sequence_reduction.*:[0123]": STREAM,
            "*.dwconv.dwconv.weight:[23]": "a position in a kernel",
            "decode_head.linear_projections.*.weight:1": STREAM,
            "decode_head.classifier.*:0": OUTPUT,
        },
        (32, 48),
    ),
    _entry(
        "levit",
        levit,
        _levit_units,
        {
            "*.embedding_layer_1.convolution.weight:1": "reads the model's input",
            "*.convolution.weight:[23]": "a position in a kernel",
            "*.attention_biases:1": "one per distance",
            "classifier.linear.*:0": OUTPUT,
        },
        (80, 80),
        note="in eval mode it keeps its biases from the first pass on, traced ones too",
    ),
]
