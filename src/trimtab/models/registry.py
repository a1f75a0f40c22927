"""The networks by name, and any network of the user's by `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

from torch import nn

from trimtab.checks import hint, whole
from trimtab.inputs import CODE_VARIABLE
from trimtab.lazy import at
from trimtab.models.catalogue import NETWORKS

Size = int | tuple[int, int]


def _find(path: str) -> Callable[..., Any]:
    allowed = os.environ.get(CODE_VARIABLE, "any")
    if allowed != "any" and path not in allowed.split(","):
        raise ValueError(
            f"the recipe names the network {path!r}: building it runs code of that module with the recipe's arguments. If "
            "the recipe is yours, or you have read it, add --trust-code, or name the network yourself with --model.name"
        )
    module_name, _, function_name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model {path!r}: cannot import {error.name!r}; it must be installed or on PYTHONPATH"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {path!r} must have the form package.module:function") from error
    for part in function_name.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ValueError(f"model {path!r}: no {part!r} there; {hint(part, public, 'its names')}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"model {path!r} must be a function or class, got {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _arguments(name: str, build: Callable[..., Any], offered: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What `build` is called with: of `offered` what it takes, and all of `given`, which it must take."""
    parameters = inspect.signature(build).parameters
    named = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key not in named and not open_ended:
            free = [item for item in named if item not in offered]
            raise ValueError(f"model {name!r} takes no argument {key!r}; {hint(key, free, 'its arguments')}")
    taken = {key: value for key, value in offered.items() if key in named or (open_ended and key == "num_classes")}
    missing = [
        key for key in named if parameters[key].default is inspect.Parameter.empty and key not in {**taken, **given}
    ]
    if missing:
        raise ValueError(f"model {name!r} needs the argument(s) {missing}")
    return {**taken, **given}


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: Size = 32,
    length: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a network with fresh weights (from torch's global generator; seed it for a repeatable network).

    Args:
        name: one of `names()`, or `package.module:function` for a network of the user's. That function (or class) is
            given `num_classes`, `in_channels` and `image_size` where its signature names them (`num_classes` also
            when it takes `**kwargs`), and must return an `nn.Module`. For texts it is given `length`, which its signature
            must name, and must make logits (N, length, num_classes) of bytes (N, length).
        num_classes: outputs, 1 or more; for segmentation the classes of a pixel, background included; for texts 256.
        in_channels: channels of the images.
        image_size: side of the images in pixels, or (height, width); a square pair is handed on as one number.
        length: bytes of a text, for a network that reads texts instead of images.
        arguments: further arguments of that network.

    Raises:
        ValueError: an unknown name (the nearest ones are listed), an argument the network does not take, a size below
            1, a network for images given texts or the reverse, a user's module that cannot be imported, or may not run by
            `CODE_VARIABLE`.
        TypeError: the user's function is not callable or did not return an `nn.Module`.

    Example:
        >>> import torch
        >>> create("resnet8", num_classes=10)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
        >>> create("resnet21", num_classes=10)
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'resnet21'; did you mean resnet20 or ...?...
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for label, value in (
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("image_size", min(height, width)),
        ("length", 1 if length is None else length),
    ):
        whole(label, value, 1)
    if ":" in name:
        build = _find(name)
    elif name in NETWORKS:
        build = at(f"trimtab.models.{NETWORKS[name][0]}")
    else:
        raise ValueError(
            f"unknown model {name!r}; {hint(name, NETWORKS, 'models')}; package.module:function names one of yours"
        )
    size: Size = height if height == width else (height, width)
    offered: dict[str, Any] = {"num_classes": num_classes}
    asks = inspect.signature(build).parameters.get("length")
    if length is not None:
        if asks is None:
            raise ValueError(f"model {name!r} takes no argument 'length', so it cannot read texts; byte_gpt does")
        offered["length"] = length
    else:
        if asks is not None and asks.default is asks.empty and "length" not in arguments:
            raise ValueError(f"model {name!r} reads texts (it asks for their length), and the data are images")
        offered |= {"in_channels": in_channels, "image_size": size}
    network = build(**_arguments(name, build, offered, arguments))
    if not isinstance(network, nn.Module):
        raise TypeError(f"model {name!r} must return a torch.nn.Module, got {type(network).__name__}")
    return network
