"""A detector whose backbone is another model (transformers)."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.entry import OUTPUT, STREAM, Entry, normal, seeded
from zoo.hf_vision_conv import resnet_config, resnet_units


def detr_config() -> Any:
    from transformers import DetrConfig

    return DetrConfig(
        use_timm_backbone=False,
        backbone_config=resnet_config(out_features=["stage2"]),
        d_model=32,
        num_queries=7,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=50,
        decoder_ffn_dim=46,
        num_labels=5,
    )


def detr() -> nn.Module:
    from transformers import DetrForObjectDetection

    return DetrForObjectDetection(detr_config())


def _detr_units() -> dict[str, int]:
    """A ResNet, an encoder, a decoder that attends twice, and a perceptron for the boxes."""
    c = detr_config()
    encoder = c.encoder_layers * c.encoder_attention_heads
    return resnet_units(c.backbone_config) | {
        "heads": encoder + 2 * c.decoder_layers * c.decoder_attention_heads,
        "ffn neurons": c.encoder_layers * c.encoder_ffn_dim + c.decoder_layers * c.decoder_ffn_dim,
        "neurons of the boxes": 2 * c.d_model,
    }


DETR = {
    "*.embedder.embedder.convolution.weight:1": "reads the model's input",
    "*.backbone.*:[23]": "a position in a kernel",
    "*.input_projection.*:0": STREAM,
    "*.query_position_embeddings.weight:[01]": "one per object, and objects are outputs; " + STREAM,
    "*layer*norm.*:0": STREAM,
    "*.[qkv]_proj.weight:1": STREAM,
    "*.o_proj.*:0": STREAM,
    "*.mlp.fc1.weight:1": STREAM,
    "*.mlp.fc2.*:0": STREAM,
    "class_labels_classifier.*:[01]": "is the model's output; " + STREAM,
    "bbox_predictor.layers.0.weight:1": STREAM,
    "bbox_predictor.layers.2.*:0": OUTPUT,
}

ENTRIES = [
    Entry(
        "detr",
        seeded(detr),
        normal(2, 3, 64, 48),
        _detr_units,
        DETR,
        needs="transformers",
        note="the backbone's batch norms are frozen: scales and shifts are buffers",
    ),
]
