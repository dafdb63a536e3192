"""Typed configuration: one section per concern, named profiles, explicit overrides.

Precedence: defaults < profile YAML, before it its `base`, another profile < its variant, if one is named
(`birds:ratlip`) < override; first of these `train.recipe=paper`, which stands for the authors' settings.
`system` names the GAN, and what the section `model` holds: each system has its own, with its paper's defaults. Keys of
one name mean the same in all: where a variant or override names another system, it keeps the settings that it knows.
"""

from __future__ import annotations

import difflib
import os
import re
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError


class ConfigError(ValueError):
    """A profile, key or value that does not exist or does not fit; the message says which and what would."""


NUMBER = re.compile(r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,2})?")
Precision = Literal["auto", "fp32", "bf16"]
RIGHT = {int: "a whole number", float: "a decimal number", bool: "true or false", NoneType: "none"}


def read_value(text: Any, kind: Any) -> Any:
    """What was typed, as a value of an annotated type; what is no text stays as it is.

    A text to the letter, but for `~`; a plain decimal; true or false; [a, b]; none, of a text nothing. Raises
    ValueError for all else, YAML's 0x10, 1_000, 1:30, yes or .inf too, and says what would be right.
    """
    if not isinstance(text, str):
        return text
    union = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    kinds, word = [get_args(one)[0] if get_origin(one) is Annotated else one for one in union], text.strip()
    if NoneType in kinds and (not word or (str not in kinds and word.lower() in ("none", "null"))):
        return None
    for one in kinds:
        if one is str:
            return os.path.expanduser(text)
        if one in (int, float) and NUMBER.fullmatch(word) and (one is float or Decimal(word) == int(Decimal(word))):
            return one(Decimal(word))
        if get_origin(one) is tuple:
            items = [item.strip(" '\"") for item in word.strip("[]()").split(",")]
            return tuple(read_value(item, get_args(one)[0]) for item in items if item)
        names = {str(choice).lower(): choice for choice in ((False, True) if one is bool else get_args(one))}
        if word.lower() in names:
            return names[word.lower()]
    right = [RIGHT.get(one) or ", ".join(map(str, get_args(one))) for one in kinds]
    raise ValueError(f"right would be {' or '.join(right)}")


class AsTyped(yaml.SafeLoader):  # values stay texts, but for null: what they are is a matter of their keys
    yaml_implicit_resolvers = dict.fromkeys(["~", "n", "N", ""], yaml.SafeLoader.yaml_implicit_resolvers["~"])


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _as_typed(cls, value: Any, info: Any) -> Any:
        return read_value(value, cls.model_fields[info.field_name].annotation)


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

    name: str = Field("mini", description="mini, photos64 (shipped), own (or by its shape), a file, ViT-B/32, ...")
    convention: Literal["clip", "reference"] = Field("clip", description="how images enter CLIP")
    taps: tuple[int, ...] | None = Field(None, description="tapped image blocks, 0-based; default: GALIP's, scaled")
    prompt_layers: int | None = Field(None, ge=1, description="blocks with a prompt token; default: GALIP's, scaled")
    damsm: str | None = Field(None, description="folder of a DAMSM that reads captions in CLIP's place")
    width: int = Field(128, ge=64, multiple_of=64, description="small CLIP: width of the image encoder")
    layers: int = Field(4, ge=1, description="small CLIP: blocks of the image encoder")
    patch_size: int = Field(8, ge=1, description="small CLIP: side of a patch, pixels")
    stem: Literal["", "lite0"] = Field("", description="small CLIP: frozen network's first blocks beside its patches")
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
    projected: str = Field("", description="network a second discriminator sees through: lite0, torchvision/...")
    projected_side: int = Field(80, ge=32, description="side to which it enlarges pictures, pixels")
    projected_weight: float = Field(1.0, ge=0, description="weight of the second discriminator in generator's loss")
    energy: float = Field(0.0, ge=0, description="weight of the energy score; only with projected")


class RatlipConfig(GalipConfig):
    """GALIP's networks with RATLIP's changes."""

    conditioning: Literal["affine", "recurrent", "recurrent-reference"] = Field(
        "recurrent", description="how captions reach the affines: GALIP's way, RATLIP's, or its published code's"
    )
    attention: bool = Field(True, description="batch norm and shuffle attention behind the convolutions")

    @pydantic.model_validator(mode="after")
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


class RatganConfig(ModelConfig):
    """RAT-GAN's generator and discriminator."""

    state_dim: int = Field(256, ge=1, description="width of the recurrent cell, and inside the affines")
    affines: Literal[4, 6] = Field(4, description="affines of a block; 6: the published model for flowers")
    recurrent: bool = Field(True, description="a cell carries the caption from affine to affine; false: DF-GAN of 2020")
    attention: bool = Field(False, description="the discriminator weighs places by the caption: the files of 2022")
    reference: bool = Field(False, description="as published: the last picture of a batch meets no other's caption")


class AttnganConfig(ModelConfig):
    """AttnGAN's generator and discriminators."""

    channels: int = Field(32, ge=1, description="GF_DIM: channels of the generator's maps with words")
    disc_channels: int = Field(64, ge=1, description="DF_DIM: channels behind a discriminator's first convolution")
    residual_blocks: int = Field(2, ge=0, description="R_NUM: residual blocks behind each attention; COCO: 3")
    one_picture: bool = Field(False, description="one size, one discriminator without unconditional logit: AttnDCGAN")
    damsm_weight: float = Field(5.0, ge=0, description="lambda: weight of the DAMSM losses; COCO: 50")
    reference: bool = Field(False, description="as published: attention with the masks of other captions")


class LafiteConfig(ModelConfig):
    """LAFITE's generator and discriminator."""

    channels: int = Field(128, ge=1, description="channels of the largest maps, in both networks")
    most_channels: int = Field(512, ge=1, description="channels of the smallest maps")
    noise_dim: int = Field(512, ge=1, description="length of z and of w")
    contrasts: tuple[float, float, float, float] = Field((10, 10, 0, 0), description="weights: itd, itc, iid, iic")
    temperature: float = Field(0.5, ge=0, description="of contrasts; 0: plain cosines")
    rows: float = Field(0.0, ge=0, le=1, description="lam: share of contrasts among captions, not among pictures")
    from_pictures: float = Field(0.0, ge=0, le=1, description="share of pictures whose own embedding is the caption")
    r1_weight: float = Field(10.0, ge=0, description="gamma of R1, every 16 steps")
    reference: bool = Field(False, description="as published: one sum over the batch in all logits, an exp too many")


# the systems by name -> their section `model`
MODELS: dict[str, type[ModelConfig]] = {
    "galip": GalipConfig, "ratlip": RatlipConfig, "residual": PictureConfig, "features": FeaturesConfig,
    "dfgan": DfganConfig, "ratgan": RatganConfig, "attngan": AttnganConfig, "lafite": LafiteConfig,
}  # fmt: skip


class TrainConfig(Section):
    """The training loop."""

    recipe: Literal["stable", "paper"] = Field("stable", description="'paper' repeats the authors' step exactly")
    max_steps: int = Field(1000, ge=1, description="training steps")
    batch_size: int = Field(32, ge=2, description="images a step")
    lr_g: float = Field(1e-4, gt=0, description="Adam's learning rate, generator")
    lr_d: float = Field(4e-4, gt=0, description="Adam's learning rate, discriminator and head")
    start: str | None = Field(None, description="a generator to begin with: birds64, a run folder, a .safetensors")
    warm_up: int = Field(0, ge=0, description="first steps, in which the generator keeps its weights; for start")
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

    @pydantic.model_validator(mode="after")
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

    images: Annotated[int, Field(ge=20)] | Literal["all"] = Field(2000, description="to draw; 'all': of every caption")
    per_caption: int = Field(1, ge=1, description="pictures of each caption")
    batch_size: int = Field(100, ge=1, description="pictures at once; changes no result")
    seed: int = Field(0, description="seed of noise and caption choice")
    features: tuple[Literal["judge", "clip", "imagenet", "inception"], ...] = Field(
        (), description="what distances are over; default: judge or clip, and imagenet; only inception gives FID"
    )
    metrics: tuple[Literal["ssim", "ms_ssim", "lpips", "topiq"], ...] = Field(("ssim",), description="of each picture")
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


# `Config` with a system's own section `model`, by the system
CONFIGS = {name: pydantic.create_model("Config", __base__=Config, model=(own, own())) for name, own in MODELS.items()}
SECTIONS = ("data", "clip", "model", "train", "eval")
SHAPE = {f"clip.{key}" for key in "width layers patch_size embed_dim text_width text_layers context_length".split()}
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
    parts = {section: type(getattr(CONFIGS[system](), section)).model_fields for section in SECTIONS}
    return {f"{section}.{name}": field.description or "" for section in parts for name, field in parts[section].items()}


def load_config(profile: str = "mini", overrides: dict[str, Any] | list[str] | None = None) -> Config:
    """The configuration of a profile with overrides.

    Args:
        profile: a shipped name (`profiles()`) or a YAML file's path; behind a colon a variant of it: "birds:ratlip".
        overrides: `{"train.max_steps": 100}` or `["train.max_steps=100"]` (by `read_value`, as profiles' values are).

    Raises ConfigError for an unknown profile, variant or key, or a value that does not fit, naming what would be right.
    """
    base, _, variant = profile.rpartition(":")
    if not base or profile.endswith(YAML):  # a colon in a path is the path's
        base, variant = profile, ""
    content, called = _read(base), Path(base).stem
    known, layers = content.pop("variants", {}), [content]
    if "base" in content:
        layers.insert(0, load_config(content.pop("base")).model_dump(exclude_unset=True, exclude={"profile"}))
    if base != profile:
        if variant not in known:
            raise ConfigError(f"profile {called} has no variant {variant!r}: {', '.join(known) or 'none at all'}")
        layers, called = [*layers, known[variant]], f"{called}:{variant}"
    if bare := [text for text in overrides or () if isinstance(overrides, list) and "=" not in text]:
        raise ConfigError(f"{bare[0]!r} is not of the form key=value, such as train.max_steps=100")
    pairs = overrides.items() if isinstance(overrides, dict) else [text.split("=", 1) for text in overrides or ()]
    typed = {key.strip(): value for key, value in pairs}
    if typed.get("train.recipe") == "paper":
        alone = {"projected": "", "noise_gain": 1.0}
        layers.append({"train": PAPER, "model": fitting(_laid_over(layers)["system"], alone)})
    if "clip.name" not in typed and SHAPE.intersection(typed):  # a CLIP that ships has its own
        layers.append({"clip": {"name": "own"} | ({"stem": ""} if "clip.patch_size" in typed else {})})
    for key in sorted(typed, key="system".__ne__):  # first the one that says what others mean
        section, _, name = key.partition(".")
        layers.append({section: {name: typed[key]} if name else typed[key]})
    return build_config({"profile": called, **_laid_over(layers)})


def _laid_over(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Nested values laid over each other, the last on top; at a change of the system its `model` keeps what fits."""
    values: dict[str, Any] = {"system": "galip"}
    for layer in layers:
        if (system := layer.get("system", values["system"])) != values["system"]:
            values |= {"system": system, "model": fitting(system, values.get("model", {}))}
        for section, content in layer.items():
            if isinstance(content or {}, dict):
                values[section] = {**values.get(section, {}), **(content or {})}
            elif section != "system":
                raise _unknown(section, system)
    return values


def fitting(system: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a system has."""
    return {name: value for name, value in settings.items() if name in MODELS.get(system, ModelConfig).model_fields}


def _read(profile: str) -> dict[str, Any]:
    path = PROFILES / f"{profile}.yaml" if profile in profiles() else Path(profile)
    if path.suffix not in YAML or not path.is_file():
        raise ConfigError(f"unknown profile {profile!r}: one of {', '.join(profiles())}, or the path of a .yaml file")
    try:
        content = yaml.load(path.read_bytes(), AsTyped) or {}  # it decodes UTF-16 too
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no sections (data:, model:, train:, ...) but a {type(content).__name__}")
    return content


def build_config(values: dict[str, Any]) -> Config:
    """A `Config` from nested values (of a profile or a run folder); raises ConfigError as `load_config` does."""
    if (system := values.get("system", "galip")) not in MODELS:
        raise ConfigError(f"unknown system {system!r}: one of {', '.join(MODELS)}")
    try:
        return CONFIGS[system].model_validate(values)
    except ValidationError as error:
        found = {".".join(map(str, one["loc"][:2])): one for one in error.errors()}
        if extra := [key for key, one in found.items() if one["type"] == "extra_forbidden"]:
            raise _unknown(extra[0], system) from None
        said = [f"{key} = {one['input']!r}: {one['msg'].removeprefix('Value error, ')}" for key, one in found.items()]
        raise ConfigError("; ".join(said)) from None


def changed(config: Config, base: Config | None = None) -> dict[str, tuple[Any, Any]]:
    """The keys in which `config` differs from `base` (the defaults) -> {key: (base value, value)}."""
    before = (base or Config()).flat()
    return {key: (before.get(key), now) for key, now in config.flat().items() if before.get(key) != now}


def _unknown(key: str, system: str) -> ConfigError:
    """What to say of a key that isn't there."""
    if owners := [name for name in MODELS if key in valid_keys(name)]:
        said = f"{key} is a setting of the system {' and '.join(owners)}, not of {system}"
        return ConfigError(f"{said}: leave it out, or choose system={owners[0]}")
    valid, section = valid_keys(system), key.partition(".")[0]
    hint = "".join(f" (did you mean {near}?)" for near in difflib.get_close_matches(key, valid, n=1))
    shown = ", ".join(k for k in valid if k.startswith(section + ".")) or f"system, and those in {', '.join(SECTIONS)}"
    return ConfigError(f"unknown key {key!r}{hint}; valid keys: {shown}")
