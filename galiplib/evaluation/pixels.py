"""Measures that compare a picture with its caption's photograph pixel by pixel, or look at it alone.

What was published as SSIM for these systems (about 0.02) is MS-SSIM, between pictures in unlike value ranges. A caption
doesn't say where things are, so all of these only tell chance likeness: read them beside those of other real pictures.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import EvaluationError, to_range

MS_SSIM_SIDE = 176  # the least side for five scales and a window of 11 pixels, as torchmetrics counts
LPIPS_NETS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@dataclass(frozen=True)
class PixelMeasure:
    """A measure of pictures, one by one."""

    name: str
    paired: bool  # whether it needs the photograph beside the picture
    range: str  # of values, as `to_range` has it
    measure: Callable[..., Tensor]  # (fake, real), each (B, 3, H, W), or (fake,) -> (B,)

    @torch.inference_mode()
    def __call__(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        pictures = [fake]
        if self.paired:
            if real is None:
                raise EvaluationError(f"{self.name} needs the real picture beside each")
            if real.shape[-2:] != fake.shape[-2:]:
                size = tuple(fake.shape[-2:])
                real = F.interpolate(real, size=size, mode="bilinear", antialias=True, align_corners=False)
            pictures += [real]
        return self.measure(*(to_range(one, self.range) for one in pictures)).double().flatten().cpu()


def ssim(fake: Tensor, real: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) of pictures (B, 3, H, W) in [0, 1] -> (B,): 1 for equal ones.

    In double precision, or flat pictures are rounding. torchmetrics' formula, which takes as long to load as all else.
    """
    fake, real = fake.cpu().double(), real.cpu().double()  # not every device has it
    place = torch.arange(-5.0, 6.0, dtype=torch.double)
    window = torch.softmax(-place.square() / (2 * 1.5**2), dim=0)
    edges = (F.pad(torch.eye(side).double()[None], (5, 5), mode="reflect")[0] for side in fake.shape[-2:])
    down, across = (edge.unfold(1, 11, 1) @ window for edge in edges)  # as products: 2D convolutions in double are slow
    sums = torch.cat([fake, real, fake * fake, real * real, fake * real])
    x, y, xx, yy, xy = (down.T @ sums @ across).chunk(5)  # (B, 3, H, W) each
    spread = (xx - x * x).clamp_min(0) + (yy - y * y).clamp_min(0)
    c, d = 0.01**2, 0.03**2
    found = (2 * x * y + c) * (2 * (xy - x * y) + d) / ((x * x + y * y + c) * (spread + d))
    return found.mean((1, 2, 3))


def ms_ssim_measure() -> PixelMeasure:
    """Structural similarity over five scales (Wang et al., 2003); needs pictures of 176 pixels a side."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    def measure(fake: Tensor, real: Tensor) -> Tensor:
        if (side := min(fake.shape[-2:])) < MS_SSIM_SIDE:
            raise EvaluationError(f"MS-SSIM needs pictures of {MS_SSIM_SIDE} pixels a side, not {side}: use ssim")
        return ms_ssim(fake, real, reduction="none", data_range=1.0)

    return PixelMeasure("ms_ssim", True, "unit", measure)


def lpips_measure(net: Literal["alex", "vgg", "squeeze"] = "alex", device: str | torch.device = "cpu") -> PixelMeasure:
    """Learned perceptual distance (Zhang et al., 2018), by torchmetrics: 0 for equal pictures.

    torchvision's weights of the network are downloaded once. Raises EvaluationError for another network, or if they
    can't be had, with where to put them.
    """
    if net not in LPIPS_NETS:
        raise EvaluationError(f"unknown LPIPS network {net!r}: one of {', '.join(LPIPS_NETS)}")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        network = LearnedPerceptualImagePatchSimilarity(net).net.to(device)
    except OSError as error:  # urllib's are among them
        raise EvaluationError(
            f"LPIPS can't have the weights of {LPIPS_NETS[net]} ({' '.join(str(error).split())[:200]}). Without a "
            f"network, put torchvision's file of them into {torch.hub.get_dir()}/checkpoints"
        ) from None
    return PixelMeasure("lpips", True, "signed", network)


def topiq_measure(device: str | torch.device = "cpu") -> PixelMeasure:
    """TOPIQ-NR (Chen et al., 2023), quality of a picture by itself, by pyiqa: about 0 to 1, more is better.

    pyiqa and its weights are for non-commercial use only; that is why they come by an extra of their own. Raises
    EvaluationError where either can't be had.
    """
    if importlib.util.find_spec("pyiqa") is None:
        raise EvaluationError("TOPIQ needs pyiqa (non-commercial licence): pip install 'galiplib[iqa]'")
    pyiqa = importlib.import_module("pyiqa")
    try:
        network = pyiqa.create_metric("topiq_nr", device=torch.device(device))
    except OSError as error:
        raise EvaluationError(
            f"TOPIQ's weights can't be had ({' '.join(str(error).split())[:200]}). Without a network, run it once "
            f"elsewhere and copy what it fetched: {torch.hub.get_dir()} and ~/.cache/huggingface"
        ) from None
    return PixelMeasure("topiq", False, "unit", network)


def pixel_measure(name: str, device: str | torch.device = "cpu") -> PixelMeasure:
    """A pixel measure by name; raises EvaluationError for an unknown one, and as the measures' own functions do."""
    makers: dict[str, Callable[[], PixelMeasure]] = {
        "ssim": lambda: PixelMeasure("ssim", True, "unit", ssim),
        "ms_ssim": ms_ssim_measure,
        "lpips": lambda: lpips_measure(device=device),
        "topiq": lambda: topiq_measure(device),
    }
    if name not in makers:
        raise EvaluationError(f"unknown pixel measure {name!r}: one of {', '.join(makers)}")
    return makers[name]()
