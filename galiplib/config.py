"""Typed configuration: one section per concern, named profiles, explicit overrides.

Precedence: defaults < profile YAML < its variant, if one is named (`birds:ratlip`) < override; the override
`train.recipe=paper` stands for the authors' settings and comes before the other overrides.

`system` names the GAN, and what the section `model` holds: each system has its own, with its paper's defaults. Keys of
one name mean the same in all: where a variant or override names another system, it keeps the settings that it knows.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, create_model, model_validator


class ConfigError(ValueError):
    """A profile, key or value that does not exist or does not fit; the message says which and what would."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Precision = Literal["auto", "fp32", "bf16"]


class DataConfig(Section):
    """What is learned from."""

    name: str = Field("minibirds", description="data set; 'folder': pictures with captions; 'shards': .tar files")
    folder: str | None = Field(None, description="where it lies; default: data/<name>; shards: or dir/{000..123}.tar")
    index: str | None = Field(None, description="shards: where index and embeddings lie; default: beside them")
    workers: int = Field(0, ge=0, description="processes that read the pictures of coming steps; 0: none")
    image_size: int = Field(56, ge=8, description="side of the real pictures, pixels")
    train_size: int = Field(6000, ge=2, description="mini birds: pictures in the training split")
    test_size: int = Field(1000, ge=2, description="mini birds: pictures in each of the splits seen and test")
    seed: int = Field(0, description="mini birds: seed of the drawings")


class ClipConfig(Section):
    """The frozen CLIP, and how the small one is trained."""

    name: str = Field("mini", description="'mini' (shipped), 'own' (trained first), a file, or ViT-B/32, ...")
    convention: Literal["clip", "reference"] = Field("clip", description="how images enter CLIP")
    taps: tuple[int, ...] | None = Field(None, description="tapped image blocks, 0-based; default: GALIP's, scaled")
    prompt_layers: int | None = Field(None, ge=1, description="blocks with a prompt token; default: GALIP's, scaled")
    width: int = Field(128, ge=64, multiple_of=64, description="small CLIP: width of the image encoder")
    layers: int = Field(4, ge=1, description="small CLIP: blocks of the image encoder")
    patch_size: int = Field(8, ge=1, description="small CLIP: side of a patch, pixels")
    embed_dim: int = Field(128, ge=8, description="small CLIP: width of the common space")
    text_width: int = Field(128, ge=64, multiple_of=64, description="small CLIP: width of the text encoder")
    text_layers: int = Field(2, ge=1, description="small CLIP: blocks of the text encoder")
    context_length: int = Field(24, ge=4, le=77, description="small CLIP: tokens a caption can have")
    max_steps: int = Field(300, ge=1, description="small CLIP: training steps")
    batch_size: int = Field(128, ge=2, description="small CLIP: pairs a step")
    lr: float = Field(1e-3, gt=0, description="small CLIP: peak learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="small CLIP: weight decay of AdamW")
    precision: Precision = Field("auto", description="small CLIP: of its training, as train.precision")


class ModelConfig(Section):
    """What the networks of every system have."""

    channels: int = Field(64, ge=1, description="nf: channels of the generator's last block")
    noise_dim: int = Field(100, ge=1, description="z: length of the noise vector")
    image_size: int | Literal["reference"] = Field("reference", description="side of pictures; 'reference': published")


class GalipConfig(ModelConfig):
    """GALIP's generator and discriminator."""

    code_channels: int = Field(64, ge=1, description="channels of the noise map before the fusion blocks")
    smooth_shortcut: bool = Field(False, description="shortcuts upsample linearly; published: nearest")
    noise_gain: float = Field(1.0, gt=0, description="the generator multiplies its noise by it: more counts more")
    fusion_blocks: int = Field(4, ge=1, description="fusion blocks before CLIP")
    disc_channels: int = Field(512, ge=1, description="channels of the discriminator's last block")
    head_channels: int = Field(128, ge=1, description="channels inside the conditional head")
    projected: Literal["", "lite0"] = Field("", description="frozen network a second discriminator looks through")
    projected_side: int = Field(80, ge=32, description="side to which it enlarges pictures, pixels")
    projected_weight: float = Field(1.0, ge=0, description="weight of the second discriminator in generator's loss")
    energy: float = Field(0.0, ge=0, description="weight of the energy score, of two pictures a caption")


class RatlipConfig(GalipConfig):
    """GALIP's networks with RATLIP's changes."""

    conditioning: Literal["affine", "recurrent", "recurrent-reference"] = Field(
        "recurrent", description="how captions reach the affines: GALIP's way, RATLIP's, or its published code's"
    )
    attention: bool = Field(True, description="batch norm and shuffle attention behind the convolutions")

    @model_validator(mode="after")
    def _parts_fit(self) -> RatlipConfig:
        if self.attention and (self.channels % 2 or self.code_channels % 2):
            given = f"{self.channels} and {self.code_channels}"
            raise ValueError(f"model.attention needs even model.channels and model.code_channels, not {given}")
        return self


class PictureConfig(GalipConfig):
    """GALIP with a real picture given to its generator: what both explorations of the replication have."""

    identity: float = Field(0.0, ge=0, description="weight of the objective that asks for a picture like the given one")
    exchanged: float = Field(0.0, ge=0, le=1, description="share of a batch that is given another one's picture")


class FeaturesConfig(PictureConfig):
    """GALIP with a picture's features in place of noise."""

    features: Literal["random-resnet", "clip"] = Field("random-resnet", description="whose features of the picture")
    noise_scale: float = Field(1.0, ge=0, description="of the noise beside features of variance 1")


class DfganConfig(ModelConfig):
    """DF-GAN's generator and discriminator."""

    channels: int = Field(32, ge=1, description="nf: channels next to the picture, in both networks")


# the systems by name -> their section `model`
MODELS: dict[str, type[ModelConfig]] = {
    "galip": GalipConfig,
    "ratlip": RatlipConfig,
    "residual": PictureConfig,
    "features": FeaturesConfig,
    "dfgan": DfganConfig,
}


class TrainConfig(Section):
    """The training loop."""

    recipe: Literal["stable", "paper"] = Field("stable", description="'paper' repeats the authors' step exactly")
    max_steps: int = Field(1000, ge=1, description="training steps")
    batch_size: int = Field(32, ge=2, description="images a step")
    lr_g: float = Field(1e-4, gt=0, description="Adam's learning rate, generator")
    lr_d: float = Field(4e-4, gt=0, description="Adam's learning rate, discriminator and head")
    clip_weight: float = Field(4.0, ge=0, description="weight of the CLIP similarity in the generator's loss")
    range_weight: float = Field(1.0, ge=0, description="stable: weight of pixels beyond [-1, 1] in generator's loss")
    penalty_weight: float = Field(2.0, ge=0, description="k of the matching-aware gradient penalty")
    penalty_power: float = Field(6.0, gt=0, description="p of the matching-aware gradient penalty")
    penalty_every: int = Field(1, ge=1, description="steps between penalties, each weighted by as much")
    accumulate: int = Field(1, ge=1, description="parts in which a batch goes through, to fit a small GPU")
    shift: int = Field(0, ge=0, description="DiffAugment: pixels by which pictures are moved before CLIP")
    colour: float = Field(0.0, ge=0, le=1, description="DiffAugment: strength of changes of colour, 0 to 1")
    cutout: float = Field(0.0, ge=0, le=0.9, description="DiffAugment: side of a blanked square, as a share")
    decay_fraction: float = Field(0.4, ge=0, le=1, description="last part of the run, over which rates fall to 0")
    ema_half_life: float = Field(500.0, gt=0, description="steps after which a weight counts half in the EMA")
    ema_ramp_up: float = Field(0.05, ge=0, description="the half-life is at most this share of the steps so far")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")
    compile: bool = Field(False, description="torch.compile generator and CLIP: minutes at the start, then faster")
    seed: int = Field(0, description="seed of weights, noise and data order")
    max_skipped: int = Field(20, ge=0, description="steps with non-finite gradients in a row, then back")
    rollback_factor: float = Field(3.0, ge=0, description="an evaluation so many times the best: back; 0: never")
    max_rollbacks: int = Field(3, ge=0, description="how often to go back to a good checkpoint before giving up")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the last checkpoints to keep, beside the best")
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations on 1,000 pictures, 0: none")
    sample_every: int = Field(100, ge=1, description="steps between sample grids")

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"train.accumulate = {self.accumulate} must divide train.batch_size = {self.batch_size}")
        return self


# What `train.recipe=paper` stands for: the authors' step, whatever the profile says; what is set beside it counts.
PAPER = {
    "lr_g": 1e-4, "lr_d": 4e-4, "clip_weight": 4.0, "penalty_weight": 2.0, "penalty_power": 6.0, "penalty_every": 1,
    "range_weight": 0.0, "shift": 0, "colour": 0.0, "cutout": 0.0,
}  # fmt: skip


class EvalConfig(Section):
    """What is measured, on how much."""

    images: Annotated[int, Field(ge=20)] | Literal["all"] = Field(
        2000, description="generated pictures an evaluation looks at; 'all': of every caption"
    )
    per_caption: int = Field(1, ge=1, description="pictures of each caption")
    batch_size: int = Field(100, ge=1, description="pictures at once; changes no result")
    seed: int = Field(0, description="seed of noise and caption choice")
    features: tuple[Literal["judge", "clip", "imagenet", "inception"], ...] = Field(
        (), description="what distances are over; default: judge or clip, and imagenet; only inception gives FID"
    )
    metrics: tuple[Literal["ssim", "ms_ssim", "lpips", "topiq"], ...] = Field(
        ("ssim",), description="of single pictures"
    )
    diversity: int = Field(50, ge=0, description="captions of which several pictures are compared; 0: none")
    inception: str | None = Field(None, description="file of InceptionV3's weights; default: downloaded")
    statistics: str | None = Field(None, description="of real pictures (.npz), for FID; 'cache': data/statistics")


class Config(Section):
    """Everything a run is made of."""

    profile: str = "mini"
    system: str = Field("galip", description="the GAN: " + ", ".join(MODELS))
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    model: SerializeAsAny[ModelConfig] = GalipConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def folder(self) -> str:
        """What a folder of this profile's results is called: birds -> birds, birds:ratlip -> birds-ratlip."""
        return self.profile.replace(":", "-")

    def flat(self) -> dict[str, Any]:
        """All keys with their values, `section.name`."""
        return {"system": self.system} | {f"{part}.{name}": v for part in SECTIONS for name, v in getattr(self, part)}


SECTIONS = ("data", "clip", "model", "train", "eval")
YAML = (".yaml", ".yml")
PROFILES = Path(__file__).parent / "profiles"


def profiles() -> list[str]:
    """The names of the profiles that ship with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def variants(profile: str) -> list[str]:
    """The names of a profile's variants, each chosen as `profile:variant`."""
    return list(_read(profile).get("variants", {}))


def valid_keys(system: str = "galip") -> dict[str, str]:
    """Every key that can be set, `section.name`, with its description; those of `model` are the system's."""
    kinds = {section: type(Config.model_fields[section].default) for section in SECTIONS} | {"model": MODELS[system]}
    return {
        f"{section}.{name}": field.description or ""
        for section, kind in kinds.items()
        for name, field in kind.model_fields.items()
    }


def load_config(profile: str = "mini", overrides: dict[str, Any] | list[str] | None = None) -> Config:
    """The configuration of a profile with overrides.

    Args:
        profile: a shipped name (`profiles()`) or the path of a YAML file with the same sections; of either a variant
            (`variants()`) by its name behind a colon: "birds:ratlip".
        overrides: `{"train.max_steps": 100}` or `["train.max_steps=100"]` (values are read as YAML).

    Raises:
        ConfigError: for an unknown profile, variant or key, or a value that does not fit; it names what would be right.
    """
    base, _, variant = profile.rpartition(":")
    if not base or profile.endswith(YAML):  # a colon in a path is the path's
        base, variant = profile, ""
    content = _read(base)
    known = content.pop("variants", {})
    layers = [content]
    called = Path(base).stem
    if base != profile:
        if variant not in known:
            raise ConfigError(f"profile {called} has no variant {variant!r}: {', '.join(known) or 'none at all'}")
        layers.append(known[variant])
        called = f"{called}:{variant}"
    pairs = _pairs(overrides)
    if ("train.recipe", "paper") in pairs:
        layers.append({"train": PAPER})
    typed: dict[str, Any] = {}
    for key, value in pairs:
        section, _, name = key.partition(".")
        typed |= {section: {**typed.get(section, {}), name: value} if name else value}
    return build_config({"profile": called, **_laid_over([*layers, typed])})


def _laid_over(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Nested values laid over each other, the last on top; at a change of the system its `model` keeps what fits."""
    values: dict[str, Any] = {}
    for layer in layers:
        system = layer.get("system", values.get("system", "galip"))
        if system != values.get("system", system):
            values["model"] = fitting(system, values.get("model", {}))
        values["system"] = system
        for section, content in layer.items():
            if section in SECTIONS or isinstance(content, dict):
                values[section] = {**values.get(section, {}), **(content or {})}
            elif section != "system":
                raise _unknown(section, system)
    return values


def fitting(system: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a system has."""
    return {name: value for name, value in settings.items() if name in MODELS.get(system, ModelConfig).model_fields}


def _read(profile: str) -> dict[str, Any]:
    """The content of a profile's file."""
    path = PROFILES / f"{profile}.yaml" if profile in profiles() else Path(profile)
    if path.suffix not in YAML or not path.is_file():
        raise ConfigError(f"unknown profile {profile!r}: one of {', '.join(profiles())}, or the path of a .yaml file")
    return yaml.safe_load(path.read_text()) or {}


def build_config(values: dict[str, Any]) -> Config:
    """A `Config` from nested values (of a profile or a run folder); raises ConfigError as `load_config` does."""
    if (system := values.get("system", "galip")) not in MODELS:
        raise ConfigError(f"unknown system {system!r}: one of {', '.join(MODELS)}")
    for section in values.keys() - {"profile", "system"}:
        for key in [f"{section}.{name}" for name in values[section]] if section in SECTIONS else [section]:
            if key not in valid_keys(system):
                raise _unknown(key, system)
    try:
        return _config_of(system).model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'][:2]))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(dict.fromkeys(problems))) from None


@lru_cache
def _config_of(system: str) -> type[Config]:
    """`Config` with a system's own section `model`."""
    return create_model("Config", __base__=Config, model=(MODELS[system], MODELS[system]()))


def changed(config: Config, base: Config | None = None) -> dict[str, tuple[Any, Any]]:
    """The keys in which `config` differs from `base` (the defaults) -> {key: (base value, value)}."""
    before = (base or Config()).flat()
    return {key: (before.get(key), now) for key, now in config.flat().items() if before.get(key) != now}


def _pairs(overrides: dict[str, Any] | list[str] | None) -> list[tuple[str, Any]]:
    if isinstance(overrides, dict):
        return list(overrides.items())
    pairs = []
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not of the form key=value, such as train.max_steps=100")
        try:
            found = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {key.strip()} can't be read: {error}") from None
        with suppress(ValueError):
            found = float(found) if isinstance(found, str) else found  # YAML 1.1 reads 1e-4 as a string
        pairs.append((key.strip(), found))
    return pairs


def _unknown(key: str, system: str) -> ConfigError:
    """What to say of a key that isn't there."""
    if owners := [name for name in MODELS if key in valid_keys(name)]:
        return ConfigError(
            f"{key} is a setting of the system {' and '.join(owners)}, not of {system}: leave it out, or choose "
            f"system={owners[0]}"
        )
    valid, section = valid_keys(system), key.partition(".")[0]
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    sections = f"system, and those in {', '.join(SECTIONS)}"
    shown = ", ".join(k for k in valid if k.startswith(section + "."))
    return ConfigError(f"unknown key {key!r}{hint}; valid keys: {shown or sections}")
