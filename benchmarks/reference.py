"""The yardstick: GALIP's training step and sampling as its authors run them, in plain PyTorch.

Written from the paper and from what the published program computes, independently of galiplib's networks, and as that
program goes about it: channels first; upsample, then convolve; the head convolves features and repeated sentence
together; captions pass through the text encoder in every step, at full length; the real pictures ask for a gradient,
so the penalty's graph reaches through CLIP; the discriminator's weights get gradients in the generator's step;
`torch.optim.Adam` as it comes. fp32, or on a GPU fp16 with a loss scaler, as their two settings.

`tests/test_benchmarks.py` holds it against galiplib's `paper` recipe. Only benchmarks import it. Parameters
have the authors' names, so `galiplib.checkpoints.published.to_theirs` maps ours to them.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galiplib.checkpoints.published import to_theirs
from galiplib.clip.bridge import ClipBridge
from galiplib.config import Config
from galiplib.systems.galip import block_channels, block_sizes


class TwoLinears(nn.Module):
    """Condition (B, C) -> (B, channels)."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(condition_dim, channels)
        self.linear2 = nn.Linear(channels, channels)

    def forward(self, condition: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(condition)))


class Affine(nn.Module):
    """(B, channels, H, W), (B, C) -> (B, channels, H, W)."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.fc_gamma = TwoLinears(condition_dim, channels)
        self.fc_beta = TwoLinears(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma = self.fc_gamma(condition)[:, :, None, None].expand_as(x)
        beta = self.fc_beta(condition)[:, :, None, None].expand_as(x)
        return gamma * x + beta


class Fusion(nn.Module):
    """Affine, LeakyReLU, affine, LeakyReLU."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.affine0 = Affine(condition_dim, channels)
        self.affine1 = Affine(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.leaky_relu(self.affine0(x, condition), 0.2, inplace=True)
        return F.leaky_relu(self.affine1(x, condition), 0.2, inplace=True)


class MappingBlock(nn.Module):
    """(B, channels, g, g), (B, C) -> (B, channels, g, g)."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.fuse1 = Fusion(condition_dim, channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, padding=1)
        self.fuse2 = Fusion(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        residual = self.fuse1(self.conv1(x), condition)
        return x + self.fuse2(self.conv2(residual), condition)


class Mapping(nn.Module):
    """Noise map (B, code, g, g), condition (B, C) -> features (B, 8 nf, g, g), through the frozen CLIP with prompts."""

    def __init__(self, bridge: ClipBridge, condition_dim: int, code: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.vit = (bridge.model.visual,)  # in a tuple: no part of the state
        self.width, self.grid, self.prompt_layers = bridge.width, bridge.grid, bridge.prompt_layers
        self.FBlocks = nn.ModuleList(MappingBlock(condition_dim, code) for _ in range(blocks))
        self.conv_fuse = nn.Conv2d(code, self.width, 5, padding=2)
        self.fc_prompt = nn.Linear(condition_dim, self.prompt_layers * self.width)
        self.conv = nn.Conv2d(self.width, channels, 5, padding=2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.FBlocks:
            x = block(x, condition)
        entering = self.conv_fuse(x)  # (B, W, g, g)
        prompts = self.fc_prompt(condition).view(len(x), self.prompt_layers, self.width)
        visual = self.vit[0]
        tokens = patch_tokens(visual, entering)  # (1 + g*g, B, W)
        for index, block in enumerate(visual.transformer.resblocks):
            if 1 <= index <= self.prompt_layers:
                tokens = block(torch.cat([tokens, prompts[:, index - 1].to(tokens.dtype)[None]]))[:-1]
            else:
                tokens = block(tokens)
        return self.conv(entering + 0.1 * token_grid(tokens, self.grid))


class UpBlock(nn.Module):
    """(B, channels_in, h, h), (B, C) -> (B, channels_out, size, size)."""

    def __init__(self, condition_dim: int, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.fuse1 = Fusion(condition_dim, channels_in)
        self.c1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.fuse2 = Fusion(condition_dim, channels_out)
        self.c2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.c_sc = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.interpolate(x, size=(self.size, self.size))
        residual = self.c1(self.fuse1(x, condition))
        return self.c_sc(x) + self.c2(self.fuse2(residual, condition))


class NetG(nn.Module):
    """Noise (B, Z), sentence (B, E) -> picture (B, 3, H, W)."""

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__()
        model = config.model
        condition_dim = model.noise_dim + bridge.embed_dim
        sizes = block_sizes(bridge.grid, model.image_size)
        widths = block_channels(model.channels, len(sizes))
        self.code_shape = (model.code_channels, bridge.grid, bridge.grid)
        self.fc_code = nn.Linear(model.noise_dim, model.code_channels * bridge.grid**2)
        self.mapping = Mapping(bridge, condition_dim, model.code_channels, model.fusion_blocks, widths[0][0])
        self.GBlocks = nn.ModuleList(
            UpBlock(condition_dim, *width, size) for width, size in zip(widths, sizes, strict=True)
        )
        self.to_rgb = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(widths[-1][1], 3, 3, padding=1))

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        condition = torch.cat([noise, sentence], dim=1)
        x = self.mapping(self.fc_code(noise).view(-1, *self.code_shape), condition)
        for block in self.GBlocks:
            x = block(x, condition)
        return self.to_rgb(x)


class FeatureBlock(nn.Module):
    """x + gamma * residual(x), through a 1x1 shortcut where the width changes; collecting ones add beta * tap."""

    def __init__(self, channels_in: int, channels_out: int, collects: bool) -> None:
        super().__init__()
        self.conv_r = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        )  # fmt: skip
        self.conv_s = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))
        if collects:
            self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tap: Tensor | None = None) -> Tensor:
        y = self.conv_s(x) + self.gamma * self.conv_r(x)
        return y if tap is None else y + self.beta * tap


class NetD(nn.Module):
    """Tapped features (B, taps, W, g, g) -> (B, channels, g, g)."""

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__()
        self.DBlocks = nn.ModuleList(FeatureBlock(bridge.width, bridge.width, True) for _ in bridge.taps[1:])
        self.main = FeatureBlock(bridge.width, config.model.disc_channels, False)

    def forward(self, features: Tensor) -> Tensor:
        x = features[:, 0]
        for index, block in enumerate(self.DBlocks, start=1):
            x = block(x, features[:, index])
        return self.main(x)


class NetC(nn.Module):
    """Features (B, channels, g, g), sentence (B, E) -> logits (B, 1, 1, 1)."""

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__()
        kernel = min(4, bridge.grid)
        channels, inner = config.model.disc_channels + bridge.embed_dim, config.model.head_channels
        self.joint_conv = nn.Sequential(
            nn.Conv2d(channels, inner, kernel, bias=False), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(inner, 1, bridge.grid - kernel + 1, bias=False),
        )  # fmt: skip

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        repeated = sentence[:, :, None, None].repeat(1, 1, *features.shape[-2:])
        return self.joint_conv(torch.cat([features, repeated], dim=1))


# ---------------------------------------------------------------- the frozen CLIP


def patch_tokens(visual: nn.Module, grid: Tensor) -> Tensor:
    """Patch features (B, W, g, g) -> transformer input (1 + g*g, B, W)."""
    x = grid.flatten(2).permute(0, 2, 1)
    start = visual.class_embedding.to(x.dtype) + torch.zeros(len(x), 1, x.shape[-1], dtype=x.dtype, device=x.device)
    x = visual.ln_pre(torch.cat([start, x], dim=1) + visual.positional_embedding.to(x.dtype))
    return x.permute(1, 0, 2)


def token_grid(tokens: Tensor, grid: int) -> Tensor:
    """(1 + g*g, B, W) -> (B, W, g, g)."""
    return tokens.permute(1, 2, 0)[:, :, 1:].contiguous().view(tokens.shape[1], -1, grid, grid)


class ImageEncoder:
    """Pictures (B, 3, H, W) in [-1, 1] -> tapped features (B, taps, W, g, g), embeddings (B, E)."""

    def __init__(self, bridge: ClipBridge) -> None:
        self.visual, self.taps, self.grid = bridge.model.visual, bridge.taps, bridge.grid
        self.mean, self.std = bridge.pixel_mean, bridge.pixel_std

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual, tapped = self.visual, []
        x = ((images + 1) / 2 + 1) / 2  # twice, as published
        x = (F.interpolate(x, size=visual.input_resolution) - self.mean) / self.std
        x = patch_tokens(visual, visual.conv1(x))
        for index, block in enumerate(visual.transformer.resblocks):
            x = block(x)
            if index in self.taps:
                tapped.append(token_grid(x, self.grid))
        return torch.stack(tapped, dim=1), visual.ln_post(x[0]) @ visual.proj


# ---------------------------------------------------------------- the step


class Reference:
    """The authors' training and sampling.

    Args:
        precision: "fp32", or "fp16" (autocast with a loss scaler; a GPU only: on a CPU, fp16 is emulated).
        training: with discriminator and optimizers.
    """

    def __init__(self, bridge: ClipBridge, config: Config, precision: str = "fp32", training: bool = True) -> None:
        device = bridge.pixel_mean.device
        self.clip, self.encode_image, self.config = bridge.model, ImageEncoder(bridge), config.train
        self.device, self.half = device, precision == "fp16"
        self.netG = NetG(bridge, config).to(device)
        if not training:
            return
        self.netD, self.netC = NetD(bridge, config).to(device), NetC(bridge, config).to(device)
        d_parameters = [*self.netD.parameters(), *self.netC.parameters()]
        self.optimizer_g = torch.optim.Adam(self.netG.parameters(), lr=config.train.lr_g, betas=(0.0, 0.9))
        self.optimizer_d = torch.optim.Adam(d_parameters, lr=config.train.lr_d, betas=(0.0, 0.9))
        self.scaler_g, self.scaler_d = (torch.amp.GradScaler(device.type, enabled=self.half) for _ in range(2))

    def copy(self, network: str, ours: nn.Module) -> None:
        """Take the weights of one of our networks, of which "netG", "netD" or "netC" is theirs."""
        state = {to_theirs(network, name): tensor for name, tensor in ours.state_dict().items()}
        getattr(self, network).load_state_dict(state)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.float16) if self.half else contextlib.nullcontext()

    def step(self, images: Tensor, tokens: Tensor, noise: Tensor) -> dict[str, float]:
        """Pictures (B, 3, H, W) in [-1, 1], captions' tokens (B, context), noise (B, Z) -> losses."""
        config = self.config
        with torch.no_grad():
            sentence = self.clip.encode_text(tokens)
        images = images.detach().requires_grad_()
        sentence = sentence.requires_grad_()

        self.optimizer_d.zero_grad()
        with self.autocast():
            real, _ = self.encode_image(images)
            collected = self.netD(real)
            logits = self.netC(collected, sentence)
            loss_real = F.relu(1.0 - logits).mean()
            mismatched = torch.cat([sentence[1:], sentence[:1]])
            loss_mismatch = F.relu(1.0 + self.netC(collected, mismatched)).mean()
            fakes = self.netG(noise, sentence)
            fake, embedding = self.encode_image(fakes)
            loss_fake = F.relu(1.0 + self.netC(self.netD(fake.detach()), sentence)).mean()
        penalty = self.penalty(real, sentence, logits)
        with self.autocast():
            loss_d = loss_real + (loss_fake + loss_mismatch) / 2 + penalty
        self.scaler_d.scale(loss_d).backward()
        self.scaler_d.step(self.optimizer_d)
        self.scaler_d.update()

        self.optimizer_g.zero_grad()
        with self.autocast():
            logit = self.netC(self.netD(fake), sentence)
            similarity = F.cosine_similarity(embedding, sentence).mean()
            loss_g = -logit.mean() - config.clip_weight * similarity
        self.scaler_g.scale(loss_g).backward()
        self.scaler_g.step(self.optimizer_g)
        self.scaler_g.update()
        losses = {
            "loss_real": loss_real, "loss_mismatch": loss_mismatch, "loss_fake": loss_fake, "penalty": penalty,
            "loss_g": loss_g, "similarity": similarity,
        }  # fmt: skip
        return {name: value.item() for name, value in losses.items()}

    def penalty(self, features: Tensor, sentence: Tensor, logits: Tensor) -> Tensor:
        """The matching-aware gradient penalty, over the graph of the real pairs' logits."""
        scaled = self.scaler_d.scale(logits) if self.half else logits
        gradients = torch.autograd.grad(scaled, (features, sentence), torch.ones_like(scaled), create_graph=True)
        if self.half:
            gradients = [gradient / (self.scaler_d.get_scale() + 1e-8) for gradient in gradients]
        with self.autocast():
            flat = torch.cat([gradient.reshape(len(gradient), -1) for gradient in gradients], dim=1)
            norm = torch.sqrt(torch.sum(flat**2, dim=1))
            return self.config.penalty_weight * torch.mean(norm**self.config.penalty_power)

    @torch.no_grad()
    def sample(self, tokens: Tensor, noise: Tensor) -> Tensor:
        """Captions' tokens (B, context), noise (B, Z) -> pictures (B, 3, H, W) in [-1, 1] on the CPU."""
        with self.autocast():
            images = self.netG(noise, self.clip.encode_text(tokens))
        return images.float().clamp(-1, 1).cpu()
