import pytest

from galiplib.config import ConfigError, build_config, changed, load_config, profiles, valid_keys


def test_every_profile_loads():
    assert "mini" in profiles()
    for name in profiles():
        assert load_config(name).profile == name


def test_override_beats_profile_beats_default():
    assert load_config("mini", ["train.max_steps=7"]).train.max_steps == 7
    assert load_config("mini").model.channels == 16  # the profile's, not the default's
    assert load_config("mini", {"train.lr_g": 1e-4}).train.lr_g == 1e-4
    assert load_config("mini", ["train.lr_g=1e-4"]).train.lr_g == 1e-4  # YAML 1.1 reads this as text


def test_changed_lists_differences():
    config = load_config("mini", ["train.max_steps=7"])
    assert changed(config, load_config("mini"))["train.max_steps"] == (load_config("mini").train.max_steps, 7)


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("minni", [], "mini"),
        ("mini", ["train.max_step=3"], "did you mean train.max_steps"),
        ("mini", ["optimizer.lr=3"], "valid keys"),
        ("mini", ["train.max_steps=many"], "train.max_steps = 'many'"),
        ("mini", ["train.max_steps=0"], "train.max_steps = 0"),
        ("mini", ["train.max_steps"], "key=value"),
        ("mini", ["train.recipe=fast"], "train.recipe = 'fast'"),
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
