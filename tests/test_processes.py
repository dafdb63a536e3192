"""N processes with batch B/N are one process with batch B; what fails in one, fails in all."""

import warnings
from functools import partial

import pytest
import torch
from launch import launch

from galiplib import load_config, load_generator, sample
from galiplib.build import make_system
from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip
from galiplib.config import ConfigError
from galiplib.data import BadRow, DataError
from galiplib.distributed import Workers, check_batch, same_failure
from galiplib.runs import run as runs
from galiplib.runs.run import Run
from galiplib.system import Batch, Text
from galiplib.training import Optimizers, random_of, train_step

TINY = {
    "model.channels": 4, "model.code_channels": 8, "model.disc_channels": 16, "model.head_channels": 8,
    "model.fusion_blocks": 1, "model.projected": "", "model.energy": 0,
    "data.train_size": 24, "data.test_size": 21, "train.batch_size": 8, "train.max_steps": 4,
    "train.checkpoint_every": 2, "train.sample_every": 4, "train.evaluate_every": 4, "train.penalty_every": 2,
    "train.precision": "fp32",
}  # fmt: skip
FEW = 42  # pictures of an evaluation on the way, instead of 1,000
pytestmark = pytest.mark.filterwarnings("ignore:Fréchet distance from", "ignore:going on with")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(runs, "EVALUATED", FEW)


def trained(folder, overrides=None, steps=None):
    """Open a run and train it, `steps` of it at most."""
    warnings.simplefilter("ignore")
    runs.EVALUATED = FEW
    run = Run(folder, load_config("mini", {**TINY, **(overrides or {})}), "cpu", progress=False)
    for report in run.train():
        if report.step == steps:
            break
    return run


def train_in_process(rank, folder, overrides, steps=None):
    run = trained(folder, overrides, steps)
    own = torch.cat([parameter.flatten() for parameter in run.system.parameters()])
    everyone = [torch.empty_like(own) for _ in range(run.workers.size)]
    torch.distributed.all_gather(everyone, own)
    assert all(torch.equal(own, other) for other in everyone)  # EMA included


DFGAN = {key: value for key, value in TINY.items() if not key.startswith("model.")} | {"model.channels": 2}
PROJECTED = TINY | {"model.projected": "lite0", "model.projected_side": 32}
LAFITE = DFGAN | {"model.most_channels": 8, "model.noise_dim": 8, "train.shift": 2}
RECIPES = (
    ("mini", TINY),
    ("mini", TINY | {"train.accumulate": 2, "train.shift": 2, "train.colour": 0.5}),
    ("mini", TINY | {"train.recipe": "paper"}),
    ("mini:dfgan", DFGAN | {"train.accumulate": 2, "train.shift": 2}),
    ("mini", PROJECTED | {"train.shift": 2}),
    ("mini", PROJECTED | {"model.energy": 4.0, "train.batch_size": 16}),
    ("mini:ratgan", DFGAN | {"train.accumulate": 2, "model.state_dim": 8}),
    ("mini:ratlip", TINY | {"model.attention": True}),
    ("mini:attngan", DFGAN | {"model.disc_channels": 4}),
    ("mini:lafite", LAFITE),
    ("mini:lafite", LAFITE | {"model.reference": True, "model.contrasts": [2, 2, 1, 1], "model.from_pictures": 0.5}),
)

CLIP = {
    "embed_dim": 32, "image_resolution": 56, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 8,
    "context_length": 8, "transformer_width": 32, "transformer_heads": 1, "transformer_layers": 1,
}  # fmt: skip


def steps_in_double(workers, recipe):
    """Two steps in double precision, all lazy phases in the second, of the energy score one -> losses, and all tensors.

    In single precision Adam makes whole steps of gradients that cancel but for rounding; below its epsilon it doesn't.
    """
    profile, settings = recipe
    if energy := settings.get("model.energy"):  # its unit is a part's own: the same parts, whoever has them
        settings = settings | {"train.accumulate": 4 // workers.size}
    config = load_config(profile, settings | {"train.max_steps": 16})
    size = config.train.batch_size
    torch.manual_seed(0)
    bridge = ClipBridge(new_clip(CLIP, [0, 1]).requires_grad_(False)).double()
    for module in bridge.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.__class__ = torch.nn.LayerNorm  # CLIP's own goes through single precision
    system = make_system(bridge, config).double()
    if projected := getattr(system, "projected", None):
        projected.train(not energy)  # power iteration takes a step a part
        for stage in projected.eyes.stages:
            stage.double()
    optimizers = Optimizers(system, config.train)
    random, reports = torch.Generator().manual_seed(3), []
    for step in (1,) if energy else (1, 16):
        images, sentence, picture, words = (
            torch.randn(size, *shape, generator=random, dtype=torch.float64) * scale
            for shape, scale in (((3, 56, 56), 0.3), ((bridge.embed_dim,), 1), ((bridge.embed_dim,), 1),
                                 ((5, bridge.word_dim), 1))
        )  # fmt: skip
        mask = torch.arange(5) > torch.randint(5, (size, 1), generator=random)
        text = Text(sentence, words, mask, picture, torch.arange(size) // 3)
        own, noise = workers.part(size), system.draw(size, partial(random_of, 3, step=step))
        batch = Batch(images[own], text, noise).share(own, images[own])
        reports.append(train_step(system, optimizers, batch, config.train, step, workers))
    return reports, system.state_dict()


def step_in_process(rank, folder):
    torch.Tensor.float = torch.Tensor.double  # whatever insists on single precision; this process does nothing else
    torch.set_default_dtype(torch.float64)
    workers = Workers("cpu")
    found = []
    for recipe in RECIPES:
        reports, state = steps_in_double(workers, recipe)
        found.append({"reports": [report.record() for report in reports], "state": state})
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    launch(step_in_process, 1, folder)
    return torch.load(folder / "0.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_batch_exactly(processes, alone, tmp_path):
    """Losses, gradients, parameters and EMA after two steps are those of one process with the whole batch."""
    launch(step_in_process, processes, tmp_path)
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for recipe, ours, theirs in zip(RECIPES, alone, found, strict=True):
            for mine, report in zip(ours["reports"], theirs["reports"], strict=True):
                for key in mine.keys() - {"seconds"}:
                    assert report[key] == pytest.approx(mine[key], rel=1e-9, abs=1e-12), (recipe, mine["step"], key)
            for name, tensor in ours["state"].items():
                torch.testing.assert_close(theirs["state"][name], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_run_of_two_goes_on_in_one(tmp_path):
    alone = trained(tmp_path / "alone")
    launch(train_in_process, 2, tmp_path / "team", {}, 2)
    with pytest.warns(UserWarning, match="1 processes where 2 were used"):
        run = Run(tmp_path / "team", load_config("mini", TINY), "cpu", progress=False)
    assert run.step == 2
    list(run.train())
    for mine, theirs in zip(alone.history(), run.history(), strict=True):
        assert theirs["step"] == mine["step"] and theirs["loss_d"] == pytest.approx(mine["loss_d"], rel=0.02)
    (measured,) = run.evaluations()
    assert measured["clip_similarity"] == pytest.approx(alone.evaluations()[0]["clip_similarity"], abs=0.01)


@pytest.mark.slow
def test_a_run_of_two_to_its_end(tmp_path):
    """Evaluation, samples, logs and checkpoints are made once, by all or by the first."""
    launch(train_in_process, 2, tmp_path / "team", {})
    run = Run(tmp_path / "team", load_config("mini", TINY | {"train.max_steps": 4}), "cpu", progress=False)
    assert run.finished and [line["step"] for line in run.history()] == [1, 2, 3, 4]
    assert [line["step"] for line in run.evaluations()] == [4]
    assert (tmp_path / "team" / "samples" / "step_000004.png").is_file()
    found = load_generator(tmp_path / "team" / "generator.safetensors")
    assert sample(found, found.bridge, "a red bird").images.isfinite().all()


def differ(rank, folder):
    overrides = {**TINY, "train.lr_g": 0.001 * (1 + rank)}
    with pytest.raises(ConfigError, match="differ in train.lr_g: 0.001 in process 0, 0.002 in process 1"):
        Run(folder, load_config("mini", overrides), "cpu", progress=False)
    message = "process 1 of 2: no shard 7" if rank == 0 else "^no shard 7"
    with pytest.raises(FileNotFoundError, match=message), same_failure():
        if rank == 1:
            raise FileNotFoundError("no shard 7")
    with pytest.raises(DataError, match="a.jpg: undecodable image"), same_failure():
        if rank == 1:
            raise BadRow("undecodable image", "a.jpg")  # takes more than a message
    workers = Workers()
    assert workers.any(None) is None and workers.any(15 if rank else None) == 15
    assert workers.mean(torch.tensor([float(rank)])).item() == 0.5


@pytest.mark.slow
def test_processes_that_differ_all_say_so(tmp_path):
    launch(differ, 2, tmp_path / "run")


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ConfigError, match="train.batch_size = 8 can't be shared by 3 processes .* multiple of 3"):
        check_batch(8, 1, 3)
    check_batch(8, 2, 4)


def test_shares_of_a_batch_have_their_neighbours_captions():
    """However a batch is cut, what lies behind and before each caption in the whole batch does so in its part."""

    def project(sentence):
        return 2 * sentence

    sentence, images = torch.arange(8.0)[:, None], torch.arange(8.0)[:, None]
    whole = torch.roll(sentence, -1, 0)
    for processes, parts in ((1, 1), (2, 1), (2, 2), (4, 2), (1, 4)):
        found = []
        for rank in range(processes):
            own = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
            for part in Batch(images, Text(sentence), {"z": sentence}).share(own, images[own]).split(parts):
                (itself, behind), (again, before) = part.with_next(project), part.with_previous(project)
                found.append((behind, before))
                assert torch.equal(itself, 2 * part.images) and torch.equal(again, itself)
                assert torch.equal(part.noise["z"], part.images)
        for ours, wanted in zip(zip(*found, strict=True), (whole, torch.roll(sentence, 1, 0)), strict=True):
            torch.testing.assert_close(torch.cat(ours), 2 * wanted)
