"""The networks in one line each; nothing is imported until one is built."""

from __future__ import annotations

NETWORKS: dict[str, tuple[str, str]] = {
    "digits_cnn": ("digits:DigitsCNN", "three convolutions with BatchNorm for 8 x 8 digits, 24 k parameters"),
    "resnet_digits": ("cifar_resnet:resnet_digits", "a ResNet of two small stages for 8 x 8 digits, 19 k parameters"),
    "resnet8": ("cifar_resnet:resnet8", "CIFAR ResNet with 8 layers, 75 k parameters"),
    "resnet20": ("cifar_resnet:resnet20", "CIFAR ResNet with 20 layers, 0.27 M parameters"),
    "resnet56": ("cifar_resnet:resnet56", "CIFAR ResNet with 56 layers, 0.85 M parameters"),
    "cifar10_fast": (
        "cifar_fast:CifarFast",
        "converges in 8 epochs: whitened patches and six convolutions, 0.5 M parameters; width, head_scale",
    ),
    "resnet18": ("resnet:resnet18", "ResNet-18, 11 M parameters; stem=cifar|imagenet"),
    "resnet50": ("resnet:resnet50", "ResNet-50, 24 M parameters; stem=cifar|imagenet"),
    "vgg16_bn": ("vgg:VGG16BN", "VGG-16 with BatchNorm in its CIFAR form, 14.7 M parameters"),
    "wrn28_10": ("wide_resnet:WideResNet", "WideResNet-28-10, 36.5 M parameters; depth, factor, dropout"),
    "vit_tiny": (
        "vit:VisionTransformer",
        "compact Vision Transformer, 2.7 M parameters; dim, depth, heads, patch",
    ),
    "byte_gpt": (
        "gpt:ByteGPT",
        "GPT that reads bytes, for text, 1.3 M parameters; dim, depth, heads, tied",
    ),
    "unet_small": (
        "unet:SmallUNet",
        "U-Net with few channels for segmentation on a CPU, 0.48 M parameters; width, levels",
    ),
    "unet_resnet18": ("unet:unet_resnet18", "U-Net with a ResNet-18 encoder for segmentation, 14 M parameters"),
    "unet_resnet50": ("unet:unet_resnet50", "U-Net with a ResNet-50 encoder for segmentation, 33 M parameters"),
}
"""By name: where its class or function stands in this package, and what it is."""


def names() -> dict[str, str]:
    """Every network that `create` knows, with one line on each.

    Example:
        >>> names()["resnet20"]
        'CIFAR ResNet with 20 layers, 0.27 M parameters'
    """
    return {name: line for name, (_, line) in NETWORKS.items()}
