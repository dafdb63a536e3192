"""GALIP with a real picture given to its generator: the two explorations of a replication, as systems.

The replication (wym1233, "Replication of GALIP", 2024) reports two failed attempts: the sum of a small residual block
of a real picture and of the generator, and noise that is replaced by a picture's features. Notebooks 09 and 11 repeat
them and say why. The generator gets the real picture whose caption is used, as there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import SLOPE
from ..clip.bridge import ClipBridge
from ..config import Config, ConfigError, FeaturesConfig, PictureConfig
from ..gathering import BatchNorm
from ..system import Batch, Losses, Text, TextToImage
from .galip import GALIP, Fakes, Generator


class PictureGenerator(TextToImage, ABC):
    """A generator around GALIP's that is given a picture too; without one, a grey one."""

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator.bridge)
        self.generator = generator
        self.noise_dim = generator.noise_dim
        self.image_size = generator.image_size

    def forward(self, noise: Tensor, sentence: Tensor, images: Tensor | None = None) -> Tensor:
        """(B, Z), (B, E), (B, 3, H, W) in [-1, 1] -> (B, 3, H, W)."""
        if images is None:
            images = noise.new_zeros(noise.shape[0], 3, self.image_size, self.image_size)
        return self.paint(noise, sentence, images)

    @abstractmethod
    def paint(self, noise: Tensor, sentence: Tensor, images: Tensor) -> Tensor:
        """The same with a picture."""


class PictureGALIP(GALIP):
    """GALIP whose fakes are made of a real picture as well, with an objective to be like it (`model.identity`).

    The last rows of a batch, `model.exchanged` of it, get another row's picture: "this one, but with that caption";
    all of them, it is the control.
    """

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__(bridge, config)
        if self.projected and self.projected.energy:
            raise ConfigError(
                "model.energy draws two pictures a caption, and only one is given here: set model.energy=0"
            )
        self.settings = cast(PictureConfig, config.model)
        self.generator: PictureGenerator = self.around(cast(Generator, self.generator), self.settings)

    @classmethod
    def make_generator(cls, bridge: ClipBridge, config: Any) -> PictureGenerator:
        return cls.around(Generator(bridge, config), config)

    @staticmethod
    @abstractmethod
    def around(generator: Generator, config: Any) -> PictureGenerator:
        """The generator that is given pictures."""

    def given(self, batch: Batch) -> Tensor:
        """The pictures that the generator gets, (B, 3, H, W)."""
        size = len(batch.images)
        kept = size - round(self.settings.exchanged * size)
        return torch.cat([batch.images[:kept], batch.images[kept:].roll(1, 0)])

    def draw_fakes(self, batch: Batch) -> Tensor:
        sentence = batch.text.sentence
        return self.generator(batch.noise["z"].to(sentence.device), sentence, self.given(batch))

    def losses_of(self, fakes: Fakes, batch: Batch) -> Losses:
        total, noted = super().losses_of(fakes, batch)
        if self.settings.identity:
            unlike = self.unlike(fakes.pictures, self.given(batch))
            total = total + self.settings.identity * unlike
            noted = noted | {"loss_g": total, "identity": unlike}
        return Losses(total, noted)

    @abstractmethod
    def unlike(self, made: Tensor, given: Tensor) -> Tensor:
        """How unlike pictures are to those given, both (B, 3, H, W) -> a scalar."""

    def loss_of(self, pictures: Tensor, sentence: Tensor) -> Tensor:
        """What the generator's phase would minimise, but for the objective, if it had made these (B, 3, H, W)."""
        return super().losses_of(self.look_at(pictures), Batch(pictures, Text(sentence), {})).total


# ---------------------------------------------------------------- the residual structure


class ImageBlock(nn.Module):
    """The replication's residual block: lrelu(conv-BN-lrelu-conv-BN + 1x1 conv-BN), without biases before BN."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            BatchNorm(channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, 3, 3, padding=1, bias=False),
            BatchNorm(3),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), BatchNorm(3))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return F.leaky_relu(self.residual(images) + self.shortcut(images), SLOPE)


class ResidualGenerator(PictureGenerator):
    """block(picture) + generator(noise, sentence)."""

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        self.block = ImageBlock()

    def branches(self, noise: Tensor, sentence: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The picture's branch and the generator's, (B, 3, H, W) both; their sum is made."""
        return self.block(images), self.generator(noise, sentence)

    def paint(self, noise: Tensor, sentence: Tensor, images: Tensor) -> Tensor:
        image_part, generated = self.branches(noise, sentence, images)
        return image_part + generated


class ResidualGALIP(PictureGALIP):
    """The residual structure; unlike is the mean squared distance of pixels."""

    @staticmethod
    def around(generator: Generator, config: PictureConfig) -> ResidualGenerator:
        return ResidualGenerator(generator)

    def unlike(self, made: Tensor, given: Tensor) -> Tensor:
        return F.mse_loss(made, given)

    def gain_gradient(self, noise: Tensor, sentence: Tensor, images: Tensor) -> float:
        """d loss / d gain at 1, for gain * block(picture) + generator(noise, sentence): above 0, less is better."""
        with torch.no_grad():
            image_part, generated = cast(ResidualGenerator, self.generator).branches(noise, sentence, images)
        gain = torch.ones((), device=noise.device, requires_grad=True)
        return torch.autograd.grad(self.loss_of(gain * image_part + generated, sentence), gain)[0].item()


def energy_share(image_part: Tensor, generated: Tensor, centred: bool = False) -> float:
    """The picture's branch's part of the two branches' energy (mean square), in [0, 1].

    Args:
        image_part, generated: the branches, (B, 3, H, W) both.
        centred: of the variance over the batch only: what is the same in all pictures counts for nothing. For
            pictures that don't depend on noise and caption that is the variance of the sum that comes from them.
    """
    if centred:
        image_part, generated = image_part - image_part.mean(0), generated - generated.mean(0)
    energy, other = (branch.double().square().mean() for branch in (image_part, generated))
    return float(energy / (energy + other))


@torch.no_grad()
def image_share(generator: PictureGenerator, noise: Tensor, images: Tensor, sentence: Tensor) -> float:
    """How much of the variance of what is shown comes from the picture given: 0 if it is ignored, 1 if all counts.

    Half the mean squared change when only the given picture is exchanged, over the variance when everything is drawn
    anew: a total Sobol index (Jansen's estimate). Outputs are cut to [-1, 1], as when they are shown.

    Args:
        noise, images, sentence: (B, Z), (B, 3, H, W), (B, E); rows are exchanged with their neighbours.
    """
    made = generator(noise, sentence, images).clamp(-1, 1)
    other = generator(noise, sentence, images.roll(1, 0)).clamp(-1, 1)
    return float((made - other).square().mean() / (made - made.roll(1, 0)).square().mean())


# ---------------------------------------------------------------- features in place of noise


class RandomResNet(nn.Module):
    """The replication's feature extractor: a ResNet-50 as torchvision makes it, untrained, never updated.

    In training mode its BatchNorm normalises by the batch, in eval mode by what it has gathered so far, as there.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50  # as long to load as torch

        self.network = resnet50(weights=None).requires_grad_(False)
        self.width = 1000

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1000)."""
        return self.network(images)


class ClipFeatures(nn.Module):
    """The frozen CLIP's embedding of a picture, of length one."""

    def __init__(self, bridge: ClipBridge) -> None:
        super().__init__()
        self._bridge = (bridge,)  # in a tuple, so that CLIP is no part of this module's state
        self.width = bridge.embed_dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E)."""
        return F.normalize(self._bridge[0].encode_image(images)[1].float(), dim=1)


class FeatureGenerator(PictureGenerator):
    """The generator with norm(norm(linear(features of the picture)) + scale * noise) in place of the noise.

    `norm` is a LayerNorm, so that each row has about mean 0 and variance 1, as noise has. The replication has a random
    ResNet's features and scale 1.

    Attributes:
        scale: of the noise beside features of variance 1; may be changed at any time.
    """

    def __init__(self, generator: Generator, features: RandomResNet | ClipFeatures, scale: float = 1.0) -> None:
        super().__init__(generator)
        self.features = features
        self.scale = scale
        self.project = nn.Linear(features.width, self.noise_dim)
        self.norm_features = nn.LayerNorm(self.noise_dim)
        self.norm_mixed = nn.LayerNorm(self.noise_dim)

    def mixed(self, noise: Tensor, images: Tensor) -> Tensor:
        """(B, Z), (B, 3, H, W) -> what the generator gets as its noise, (B, Z)."""
        features = self.norm_features(self.project(self.features(images)))  # (B, Z)
        return self.norm_mixed(features + self.scale * noise)

    def paint(self, noise: Tensor, sentence: Tensor, images: Tensor) -> Tensor:
        return self.generator(self.mixed(noise, images), sentence)


class FeatureGALIP(PictureGALIP):
    """A picture's features in place of noise; unlike is 1 - cosine of the CLIP embeddings."""

    @staticmethod
    def around(generator: Generator, config: FeaturesConfig) -> FeatureGenerator:
        features = RandomResNet() if config.features == "random-resnet" else ClipFeatures(generator.bridge)
        return FeatureGenerator(generator, features, config.noise_scale)

    def unlike(self, made: Tensor, given: Tensor) -> Tensor:
        theirs, ours = (self.bridge.encode_image(x)[1].float() for x in (given, made))
        return 1 - F.cosine_similarity(ours, theirs).mean()


# ---------------------------------------------------------------- a block that starts as a copy


def fit_to_copy(block: ImageBlock, images: Tensor, steps: int = 150, lr: float = 0.02, seed: int = 0) -> float:
    """Fit the block to give back the pictures (N, 3, H, W) in [-1, 1] -> its root mean square error at the end."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(block.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        batch = images[torch.randint(len(images), (16,), generator=rng)]
        loss = F.mse_loss(block(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.mse_loss(block(images), images).sqrt())
