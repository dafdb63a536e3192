"""Generators that are also given a picture: two explorations of a replication, and what they need to work.

The replication (wym1233, "Replication of GALIP", 2024) reports two failed attempts: the sum of a small residual block
of a real picture and of the generator, and noise that is replaced by a picture's features. Notebooks 09 and 11 repeat
them and say why. The picture travels behind the noise, in one row (B, Z + 3HW), so the training step stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augmentation import draw
from ..blocks import SLOPE
from ..clip.bridge import ClipBridge
from ..config import TrainConfig
from ..data.batches import TrainingData
from ..losses import beyond_range
from ..training import Batch, Networks, Optimizers, StepReport, generator_losses, random_of, train_step
from .galip import Generator


def pack(noise: Tensor, images: Tensor) -> Tensor:
    """Noise (B, Z) and a picture each (B, 3, H, W) -> (B, Z + 3HW), what the generators of this module take."""
    return torch.cat([noise, images.flatten(1)], dim=1)


class _Attach(torch.autograd.Function):
    """The picture unchanged; a gradient that reaches it gives the loss a gradient of one as well."""

    @staticmethod
    def forward(ctx, picture: Tensor, loss: Tensor) -> Tensor:
        return picture.view_as(picture)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.ones((), device=gradient.device)


def attach(picture: Tensor, loss: Tensor) -> Tensor:
    """The picture, with a scalar loss that is minimised beside whatever is computed from the picture.

    So a network can bring a loss of its own into a training step that knows nothing of it (mixture-of-experts layers
    add their balancing loss in this way). The step must call backward once per picture.
    """
    return _Attach.apply(picture, loss.float())


class PictureGenerator(nn.Module):
    """A generator around GALIP's that is given a picture too: (B, Z + 3HW), (B, E) -> (B, 3, H, W).

    Attributes:
        identity: weight of the objective that asks for a picture like the given one; 0: no such objective.
    """

    def __init__(self, generator: Generator, identity: float = 0.0) -> None:
        super().__init__()
        self.generator = generator
        self.identity = identity
        self.noise_dim = generator.noise_dim
        self.image_size = generator.image_size

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Z + 3HW) -> noise (B, Z), pictures (B, 3, H, W)."""
        noise, images = packed[:, : self.noise_dim], packed[:, self.noise_dim :]
        return noise, images.unflatten(1, (3, self.image_size, -1))


# ---------------------------------------------------------------- the residual structure


class ImageBlock(nn.Module):
    """The replication's residual block: lrelu(conv-BN-lrelu-conv-BN + 1x1 conv-BN), without biases before BN."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(3),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return F.leaky_relu(self.residual(images) + self.shortcut(images), SLOPE)


class ResidualGenerator(PictureGenerator):
    """block(picture) + generator(noise, sentence); the identity objective is the squared distance of pixels."""

    def __init__(self, generator: Generator, identity: float = 0.0) -> None:
        super().__init__(generator, identity)
        self.block = ImageBlock()

    def branches(self, packed: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Z + 3HW), (B, E) -> the picture's branch and the generator's, (B, 3, H, W) both; their sum is made."""
        noise, images = self.unpack(packed)
        return self.block(images), self.generator(noise, sentence)

    def forward(self, packed: Tensor, sentence: Tensor) -> Tensor:
        """(B, Z + 3HW), (B, E) -> (B, 3, H, W)."""
        image_part, generated = self.branches(packed, sentence)
        made = image_part + generated
        if self.identity and torch.is_grad_enabled():
            made = attach(made, self.identity * F.mse_loss(made, self.unpack(packed)[1]))
        return made


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
    made = generator(pack(noise, images), sentence).clamp(-1, 1)
    other = generator(pack(noise, images.roll(1, 0)), sentence).clamp(-1, 1)
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
    ResNet's features and scale 1. The identity objective is 1 - cosine of the CLIP embeddings of what is made and of
    the picture given.

    Attributes:
        scale: of the noise beside features of variance 1; may be changed at any time.
    """

    def __init__(
        self, generator: Generator, features: RandomResNet | ClipFeatures, scale: float = 1.0, identity: float = 0.0
    ) -> None:
        super().__init__(generator, identity)
        self.features = features
        self.scale = scale
        self.project = nn.Linear(features.width, self.noise_dim)
        self.norm_features = nn.LayerNorm(self.noise_dim)
        self.norm_mixed = nn.LayerNorm(self.noise_dim)

    def mixed(self, packed: Tensor) -> Tensor:
        """(B, Z + 3HW) -> what the generator gets as its noise, (B, Z)."""
        noise, images = self.unpack(packed)
        features = self.norm_features(self.project(self.features(images)))  # (B, Z)
        return self.norm_mixed(features + self.scale * noise)

    def forward(self, packed: Tensor, sentence: Tensor) -> Tensor:
        """(B, Z + 3HW), (B, E) -> (B, 3, H, W)."""
        made = self.generator(self.mixed(packed), sentence)
        if self.identity and torch.is_grad_enabled():
            bridge = self.generator.bridge
            given, ours = (bridge.encode_image(x)[1].float() for x in (self.unpack(packed)[1], made))
            made = attach(made, self.identity * (1 - F.cosine_similarity(ours, given).mean()))
        return made


# ---------------------------------------------------------------- training


def with_generator(networks: Networks, generator: nn.Module) -> Networks:
    """The networks with another generator, and its copy as EMA; discriminator and head stay."""
    networks.generator = generator.train()
    networks.ema = copy.deepcopy(generator).requires_grad_(False).eval()
    return networks


def train_with_pictures(
    networks: Networks,
    bridge: ClipBridge,
    data: TrainingData,
    config: TrainConfig,
    shift: int = 0,
    changed: float = 0.0,
) -> Iterator[StepReport]:
    """Train networks whose generator is a `PictureGenerator`, a report a step.

    The generator gets the real picture whose caption is used, as in the replication.

    Args:
        shift: 1 gives every caption the picture of another one of the batch instead: the control.
        changed: share of each batch, its last rows, that gets such a picture: "this one, but with that caption".

    Raises:
        ValueError: for `config.accumulate` above 1: parts of a batch would each bring the identity objective in full.
    """
    if config.accumulate > 1:
        raise ValueError(f"train.accumulate must be 1 with pictures given to the generator, not {config.accumulate}")
    optimizers = Optimizers(networks, config)
    size = config.batch_size
    kept = size - round(changed * size)
    for step in range(1, config.max_steps + 1):
        images, sentence = data.batch(step, size, config.seed)
        noise = torch.randn(size, networks.generator.noise_dim, generator=random_of(config.seed, 2, step))
        given = images.roll(shift, 0)
        given = torch.cat([given[:kept], given[kept:].roll(1, 0)])
        packed = pack(noise.to(sentence.device), given)
        augmentations = draw(config, size, random_of(config.seed, 3, step))
        yield train_step(networks, bridge, optimizers, config, step, images, sentence, packed, augmentations)


def generator_loss(
    networks: Networks, bridge: ClipBridge, config: TrainConfig, pictures: Tensor, sentence: Tensor
) -> Tensor:
    """What the generator's step would minimise if it had made these pictures, (B, 3, H, W) -> a scalar."""
    made = *bridge.encode_image(pictures), beyond_range(pictures)
    batch = Batch(pictures, sentence, pictures, None)  # only the sentences are looked at
    return generator_losses(networks, config, batch, *made, lambda name, value: value)


def gain_gradient(
    networks: Networks, bridge: ClipBridge, config: TrainConfig, packed: Tensor, sentence: Tensor
) -> float:
    """d loss / d gain at 1, for gain * block(picture) + generator(noise, sentence): above 0, less of it is better."""
    with torch.no_grad():
        image_part, generated = networks.generator.branches(packed, sentence)
    gain = torch.ones((), device=packed.device, requires_grad=True)
    loss = generator_loss(networks, bridge, config, gain * image_part + generated, sentence)
    return torch.autograd.grad(loss, gain)[0].item()


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
