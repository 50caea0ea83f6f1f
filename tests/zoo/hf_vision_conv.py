"""Vision models made of convolutions (transformers)."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.entry import KERNEL, OUTPUT, STREAM, Entry, normal, seeded


def resnet_config(**changes: Any) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        **{
            "embedding_size": 10,
            "hidden_sizes": [16, 28],
            "depths": [2, 3],
            "layer_type": "bottleneck",
            "num_labels": 5,
            **changes,
        }
    )


def resnet() -> nn.Module:
    from transformers import ResNetForImageClassification

    return ResNetForImageClassification(resnet_config())


def basic_resnet() -> nn.Module:
    from transformers import ResNetForImageClassification

    return ResNetForImageClassification(resnet_config(layer_type="basic"))


def resnet_units(c: Any) -> dict[str, int]:
    """Every stage begins with a projected shortcut: the stem and the stages are apart.

    A bottleneck has two inner convolutions of a quarter of the width, a basic layer one.
    """
    inner = {"bottleneck": lambda width: 2 * (width // 4), "basic": lambda width: width}
    layers = zip(c.hidden_sizes, c.depths, strict=True)
    return {
        "stem": c.embedding_size,
        "streams": sum(c.hidden_sizes),
        "inner channels": sum(depth * inner[c.layer_type](width) for width, depth in layers),
    }


def regnet_config(kind: str) -> Any:
    from transformers import RegNetConfig

    return RegNetConfig(
        embedding_size=12,
        hidden_sizes=[20, 28],
        depths=[1, 2],
        groups_width=4,
        layer_type=kind,
        num_labels=5,
    )


def regnet_x() -> nn.Module:
    from transformers import RegNetForImageClassification

    return RegNetForImageClassification(regnet_config("x"))


def regnet_y() -> nn.Module:
    from transformers import RegNetForImageClassification

    return RegNetForImageClassification(regnet_config("y"))


def _regnet_units(kind: str) -> dict[str, int]:
    """Groups of four channels, more of them than four: whole groups go.

    Y has a squeeze to a quarter of a layer's input beside.
    """
    c = regnet_config(kind)
    inputs = c.embedding_size
    groups = squeezed = 0
    for width, depth in zip(c.hidden_sizes, c.depths, strict=True):
        for _ in range(depth):
            assert width // c.groups_width >= c.groups_width
            groups += width // c.groups_width
            squeezed += round(inputs / 4)
            inputs = width
    units = {"stem": c.embedding_size, "streams": sum(c.hidden_sizes), "groups": groups}
    return units | ({"squeezed": squeezed} if kind == "y" else {})


def convnext_config() -> Any:
    from transformers import ConvNextConfig

    return ConvNextConfig(hidden_sizes=[12, 18], depths=[2, 1], num_stages=2, num_labels=5)


def convnext() -> nn.Module:
    from transformers import ConvNextForImageClassification

    return ConvNextForImageClassification(convnext_config())


def _convnext_units() -> dict[str, int]:
    """Norms hold the streams; each layer has four times its width inside."""
    c = convnext_config()
    layers = zip(c.hidden_sizes, c.depths, strict=True)
    return {"inner channels": sum(4 * width * depth for width, depth in layers)}


def mobilenet_v1_config() -> Any:
    from transformers import MobileNetV1Config

    return MobileNetV1Config(depth_multiplier=0.2, min_depth=3, num_labels=5)


def mobilenet_v1() -> nn.Module:
    from transformers import MobileNetV1ForImageClassification

    return MobileNetV1ForImageClassification(mobilenet_v1_config())


def _mobilenet_v1_units() -> dict[str, int]:
    """The source doubles 32 channels at the first pointwise layer and at every stride of 2."""
    c = mobilenet_v1_config()
    depth = 32
    widths = [max(int(depth * c.depth_multiplier), c.min_depth)]
    for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
        depth *= 2 if stride == 2 or i == 0 else 1
        widths.append(max(int(depth * c.depth_multiplier), c.min_depth))
    return {"channels": sum(widths)}


def mobilenet_v2_config() -> Any:
    from transformers import MobileNetV2Config

    return MobileNetV2Config(
        depth_multiplier=0.15,
        depth_divisible_by=2,
        min_depth=3,
        expand_ratio=3.0,
        finegrained_output=False,
        num_labels=5,
    )


def mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(mobilenet_v2_config())


def _mobilenet_v2_units() -> dict[str, int]:
    """The widths and strides are a table in the source; equal widths at stride 1 are added."""
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import (
        apply_depth_multiplier,
        make_divisible,
    )

    c = mobilenet_v2_config()
    table = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
    strides = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
    widths = [apply_depth_multiplier(c, width) for width in table]
    streams, expanded = widths[0], 0
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        streams += 0 if stride == 1 and before == after else after
        wide = round(before * c.expand_ratio)
        expanded += make_divisible(wide, c.depth_divisible_by, c.min_depth)
    return {
        "stem": apply_depth_multiplier(c, 32),
        "streams": streams,
        "expanded": expanded,
        "last": apply_depth_multiplier(c, 1280),
    }


def efficientnet_config() -> Any:
    from transformers import EfficientNetConfig

    return EfficientNetConfig(
        width_coefficient=0.25,
        depth_coefficient=1.0,
        depth_divisor=2,
        kernel_sizes=[3, 5, 3],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        strides=[1, 2, 1],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 3, 4],
        squeeze_expansion_ratio=0.5,
        hidden_dim=320,
        num_labels=5,
    )


def efficientnet() -> nn.Module:
    from transformers import EfficientNetForImageClassification

    return EfficientNetForImageClassification(efficientnet_config())


def _efficientnet_units() -> dict[str, int]:
    """A stage's later blocks are added to its first one; a ratio of 1 has no expansion."""
    from transformers.models.efficientnet.modeling_efficientnet import round_filters

    c = efficientnet_config()
    inputs = stem = round_filters(c, 32)
    streams = expanded = squeezed = 0
    stages = zip(c.out_channels, c.num_block_repeats, c.expand_ratios, strict=True)
    for outputs, repeats, ratio in stages:
        for _ in range(repeats):
            expanded += inputs * ratio if ratio != 1 else 0
            squeezed += max(1, int(inputs * c.squeeze_expansion_ratio))
            inputs = round_filters(c, outputs)
        streams += inputs
    return {
        "stem": stem,
        "streams": streams,
        "expanded": expanded,
        "squeezed": squeezed,
        "top": c.hidden_dim,
    }


def poolformer_config() -> Any:
    from transformers import PoolFormerConfig

    return PoolFormerConfig(
        hidden_sizes=[12, 18],
        depths=[2, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        mlp_ratio=3.0,
        num_labels=5,
    )


def poolformer() -> nn.Module:
    from transformers import PoolFormerForImageClassification

    return PoolFormerForImageClassification(poolformer_config())


def _poolformer_units() -> dict[str, int]:
    """A group norm of one group holds each stream."""
    c = poolformer_config()
    layers = zip(c.hidden_sizes, c.depths, strict=True)
    return {"inner channels": sum(int(c.mlp_ratio * width) * depth for width, depth in layers)}


def _entry(name: str, build: Any, units: Any, pinned: dict[str, str], **more: Any) -> Entry:
    images = normal(2, 3, 32, 32)
    return Entry(name, seeded(build), images, units, pinned, needs="transformers", **more)


RESNET = KERNEL | {
    "*.embedder.embedder.convolution.weight:1": "reads the model's input",
    "classifier.1.*:0": OUTPUT,
}
REGNET = KERNEL | {
    "*.embedder.embedder.convolution.weight:1": "reads the model's input",
    "*.layer.1.convolution.weight:1": "whole groups go: the channels inside one stay",
    "classifier.1.*:0": OUTPUT,
}
MOBILENET = KERNEL | {"classifier.*:0": OUTPUT}

ENTRIES = [
    _entry("hf resnet, bottlenecks", resnet, lambda: resnet_units(resnet_config()), RESNET),
    _entry(
        "hf resnet, basic",
        basic_resnet,
        lambda: resnet_units(resnet_config(layer_type="basic")),
        RESNET,
    ),
    _entry("regnet x", regnet_x, lambda: _regnet_units("x"), REGNET),
    _entry("regnet y", regnet_y, lambda: _regnet_units("y"), REGNET),
    _entry(
        "convnext",
        convnext,
        _convnext_units,
        KERNEL
        | {
            "*embeddings.*:[01]": "reads the model's input; " + STREAM,
            "*.layer_scale_parameter:0": STREAM,
            "*norm.*:0": STREAM,
            "*.dwconv.*:0": STREAM,
            "*.pwconv1.weight:1": STREAM,
            "*.pwconv2.*:0": STREAM,
            "*.downsampling_layer.*:[01]": STREAM,
            "classifier.*:[01]": "is the model's output; " + STREAM,
        },
    ),
    _entry(
        "hf mobilenet v1",
        mobilenet_v1,
        _mobilenet_v1_units,
        MOBILENET | {"*.conv_stem.convolution.weight:1": "reads the model's input"},
    ),
    _entry(
        "mobilenet v2",
        mobilenet_v2,
        _mobilenet_v2_units,
        MOBILENET | {"*.conv_stem.first_conv.convolution.weight:1": "reads the model's input"},
    ),
    _entry(
        "efficientnet",
        efficientnet,
        _efficientnet_units,
        MOBILENET | {"*.embeddings.convolution.weight:1": "reads the model's input"},
        note="its last pooling takes a window as large as there are channels: they are unrelated",
    ),
    _entry(
        "poolformer",
        poolformer,
        _poolformer_units,
        KERNEL
        | {
            "*.patch_embeddings.*:[01]": "reads the model's input; " + STREAM,
            "*.layer_scale_[12]:0": STREAM,
            "*norm.*:0": STREAM,
            "*.output.conv1.weight:1": STREAM,
            "*.output.conv2.*:0": STREAM,
            "classifier.*:[01]": "is the model's output; " + STREAM,
        },
    ),
]
