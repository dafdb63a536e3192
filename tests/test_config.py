import json
import math

import pytest

from galiplib.checkpoints.store import recorded_config
from galiplib.config import (
    ConfigError,
    build_config,
    changed,
    load_config,
    profiles,
    valid_keys,
    variants,
)


def test_every_profile_loads():
    assert "mini" in profiles()
    for name in profiles():
        assert load_config(name).profile == name


def test_every_variant_loads_by_its_name_and_has_a_folder():
    names = [f"{profile}:{variant}" for profile in profiles() for variant in variants(profile)]
    assert {"birds:ratlip", "flowers:ratlip", "faces:ratlip", "mini:ratlip"} <= set(names)
    for name in names:
        config = load_config(name)
        assert config.profile == name and config.folder == name.replace(":", "-")
        assert load_config(config.profile) == config


def test_variant_lies_between_profile_and_override():
    config = load_config("birds:ratlip", ["train.max_steps=7"])
    assert (config.model.conditioning, config.model.attention) == ("recurrent", True)
    assert config.train.batch_size == 16 and load_config("birds").train.batch_size == 32
    assert config.train.max_steps == 7 and config.clip.name == "ViT-B/32" and config.profile == "birds:ratlip"
    assert load_config("birds:ratlip-reference").model.conditioning == "recurrent-reference"


def test_another_system_keeps_the_settings_that_it_knows():
    config = load_config("mini", ["system=ratlip", "model.attention=false"])
    assert config.system == "ratlip" and config.model.smooth_shortcut and not config.model.attention
    assert changed(config, load_config("mini"))["system"] == ("galip", "ratlip")
    assert not hasattr(load_config("mini").model, "attention")


def test_what_was_recorded_before_systems_had_names():
    then = {"channels": 16, "conditioning": "affine", "attention": False}
    assert recorded_config({"model": then}).system == "galip"
    config = recorded_config({"model": then | {"conditioning": "recurrent-reference"}})
    assert config.system == "ratlip"
    assert (config.model.conditioning, config.model.attention) == ("recurrent-reference", False)
    assert recorded_config(config.model_dump()) == config


def test_a_profile_begins_with_its_base(tmp_path):
    birds, flowers = load_config("birds_lite"), load_config("flowers_lite")
    assert set(changed(flowers, birds)) == {"data.name", "train.max_steps"} and flowers.profile == "flowers_lite"
    path = tmp_path / "own.yaml"
    path.write_text("base: mini:ratlip\ntrain: {max_steps: 5}\nvariants: {fast: {train: {max_steps: 3}}}\n")
    assert changed(load_config(f"{path}:fast"), load_config("mini:ratlip"))["train.max_steps"][1] == 3
    assert load_config(str(path)).system == "ratlip"
    path.write_text("base: bird_lite\n")
    with pytest.raises(ConfigError, match="unknown profile 'bird_lite'"):
        load_config(str(path))


def test_own_profile_with_a_variant(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("train: {max_steps: 5}\nvariants: {fast: {train: {max_steps: 3}}}\n")
    assert load_config(str(path)).train.max_steps == 5
    config = load_config(f"{path}:fast")
    assert config.train.max_steps == 3 and config.profile == "own:fast"
    assert load_config(str(path)).folder == "own" and config.folder == "own-fast"


def test_override_beats_profile_beats_default():
    assert load_config("mini", ["train.max_steps=7"]).train.max_steps == 7
    assert load_config("mini").model.channels == 16  # the profile's, not the default's
    assert load_config("mini", {"train.lr_g": 1e-4}).train.lr_g == 1e-4
    assert load_config("mini", ["train.lr_g=1e-4"]).train.lr_g == 1e-4  # YAML 1.1 reads this as text


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.folder=photos #2", "photos #2"), ("data.folder=2024", "2024"), ("data.folder=yes", "yes"),
        ("data.folder=a: b", "a: b"), ("data.folder=[x]", "[x]"), ("data.folder=a=b", "a=b"), ("data.folder=", None),
        ("data.folder=null", "null"), ("data.folder=~/photos", "HOME/photos"), ("clip.name=1e3", "1e3"),
        ("eval.inception=~/w 1.pt", "HOME/w 1.pt"), ("train.seed=0010", 10), ("train.max_steps=1e3", 1000),
        ("train.lr_g=.5", 0.5), ("train.lr_g=5", 5.0), ("train.compile=True", True), ("train.compile=false", False),
        ("clip.taps=[1, 2]", (1, 2)), ("clip.taps=1,2", (1, 2)), ("clip.taps=none", None), ("eval.images=all", "all"),
        ("clip.prompt_layers=", None), ("eval.features=[judge, 'clip']", ("judge", "clip")), ("eval.metrics=[]", ()),
        ("model.image_size=reference", "reference"), ("model.image_size=64", 64), ("model.projected=", ""),
    ],
)  # fmt: skip
def test_a_value_is_what_was_typed(typed, value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    key = typed.partition("=")[0]
    found = load_config("mini", [typed]).flat()[key]
    value = value.replace("HOME", str(tmp_path)) if isinstance(value, str) else value
    assert found == value and type(found) is type(value)
    path = tmp_path / "own.yaml"  # and so it is in a profile
    section, _, name = key.partition(".")
    text = typed.partition("=")[2]
    path.write_text(f"{section}:\n  {name}: {json.dumps(text) if ':' in text or '[x]' in text else text}\n")
    if text not in ("photos #2", "null", ""):  # a comment, and nothing, in YAML
        assert load_config(str(path)).flat()[key] == value


@pytest.mark.parametrize("text", ["1:30", "1_000", "0x10", "0o7", "1,000", "ten", "1.5", "\u0663", "none", "", "True"])
def test_a_whole_number_is_a_plain_decimal(text):
    with pytest.raises(ConfigError, match=r"train.max_steps = .*: right would be a whole number"):
        load_config("mini", [f"train.max_steps={text}"])


@pytest.mark.parametrize("text", [".inf", "inf", "-inf", "nan", "NaN", ".nan", "1e400", "1_0.5", "0x1p3", "yes"])
def test_a_number_is_finite(text):
    with pytest.raises(ConfigError, match=r"train.lr_g = .*: right would be a decimal number"):
        load_config("mini", [f"train.lr_g={text}"])


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "1", "0", "y", "t", ""])
def test_a_switch_is_true_or_false(text):
    with pytest.raises(ConfigError, match="train.compile = .*: right would be true or false"):
        load_config("mini", [f"train.compile={text}"])


def test_values_of_python_are_of_their_types_too():
    for key, value in (("data.folder", 2024), ("train.lr_g", math.inf), ("train.lr_g", math.nan), ("clip.taps", 3)):
        with pytest.raises(ConfigError, match=f"{key} = "):
            load_config("mini", {key: value})


def test_the_system_may_come_last():
    assert load_config("mini", ["model.attention=false", "system=ratlip"]).model.attention is False
    with pytest.raises(ConfigError, match="unknown key 'model.bogus'"):
        load_config("mini", ["model.bogus=1", "system=ratlip"])
    with pytest.raises(ConfigError, match="unknown key 'data'.*data.folder"):
        load_config("mini", ["data=photos"])


def test_changed_lists_differences():
    config = load_config("mini", ["train.max_steps=7"])
    assert changed(config, load_config("mini"))["train.max_steps"] == (load_config("mini").train.max_steps, 7)


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("minni", [], "mini"),
        ("mini:rat", [], "profile mini has no variant 'rat': attngan, dfgan, galip, lafite, ratgan, ratlip, ratlip-re"),
        ("coco:ratlip", [], "profile coco has no variant 'ratlip': attngan, dfgan, lafite, ratgan"),
        ("cc12m:ratlip", [], "profile cc12m has no variant 'ratlip': none at all"),
        ("mini:", [], "has no variant ''"),
        ("mini:ratlip", ["model.channels=5"], "even model.channels and model.code_channels, not 5 and 64"),
        ("mini", ["train.max_step=3"], "did you mean train.max_steps"),
        ("mini", ["optimizer.lr=3"], "valid keys"),
        ("mini", ["train.max_steps=many"], "train.max_steps = 'many'"),
        ("mini", ["train.max_steps=0"], "train.max_steps = 0"),
        ("mini", ["train.max_steps"], "key=value"),
        ("mini", ["train.recipe=fast"], "train.recipe = 'fast'"),
        ("mini", ["system=gan"], "unknown system 'gan': one of galip, ratlip"),
        ("mini", ["model.conditioning=recurrent"], "a setting of the system ratlip, not of galip: .* system=ratlip"),
    ],
)
def test_bad_input_names_the_key_and_what_is_right(profile, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(profile, overrides)


def test_unknown_section():
    with pytest.raises(ConfigError, match="data, clip, model, train, eval"):
        build_config({"trainer": {}})


def test_every_key_has_a_description():
    assert all(valid_keys().values())


def test_a_small_clip_of_another_shape_is_ones_own():
    """What was typed counts: a CLIP that ships keeps its shape, so a run with another trains its own."""
    assert load_config("birds_lite").clip.name == "photos64"
    assert load_config("birds_lite", {"clip.max_steps": 5}).clip.name == "photos64"  # of `galip train-clip`
    own = load_config("birds_lite", {"clip.layers": 2}).clip
    assert (own.name, own.layers, own.stem) == ("own", 2, "lite0")
    assert load_config("birds_lite", {"clip.patch_size": 32}).clip.stem == ""  # the stem's patches are 8 pixels
    assert load_config("birds_lite", {"clip.layers": 4, "clip.name": "photos64"}).clip.name == "photos64"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"data: [1\nname: {", "no YAML"),
        (b"data:\n  name: caf\xe9\n", "no YAML.*unacceptable|no YAML.*invalid"),
        (b"- mini\n- birds\n", "no sections .* but a list"),
    ],
)
def test_a_profile_that_cannot_be_read(tmp_path, content, said):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"own\.yaml.*({said})"):
        load_config(str(path))
