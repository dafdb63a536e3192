"""What a training survives: being stopped anywhere, damaged files, full disks, numbers that are not finite."""

import builtins
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock, Timeout

from galiplib import augmentation
from galiplib.build import make_bridge, make_system
from galiplib.checkpoints.loading import load_generator
from galiplib.checkpoints.store import CheckpointError
from galiplib.config import ConfigError, load_config
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.files import WeightsError
from galiplib.runs.guards import Guard, TrainingFailed
from galiplib.runs.interrupts import Stopped
from galiplib.runs.run import Run
from galiplib.system import Batch, Text
from galiplib.training import Optimizers, train, train_step

EVERY = {"train.colour": 0.5, "train.cutout": 0.3, "train.shift": 2}  # all that is random in a step


SETTINGS = {"train__max_steps": 6, "train__checkpoint_every": 2, "train__sample_every": 100}


@pytest.fixture
def opened(tiny_config, tmp_path):
    """Opens the run in a folder, the default one again and again."""
    return lambda name="run", **more: Run(tmp_path / name, tiny_config(**SETTINGS | more), "cpu", progress=False)


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """The run that nothing happened to."""
    run = Run(tmp_path_factory.mktemp("whole"), tiny_config(**SETTINGS), "cpu", progress=False)
    list(run.train())
    return run


@pytest.fixture(scope="module")
def four_steps(tiny_config, tmp_path_factory):
    """The folder of one that was stopped after four, to be copied."""
    run = Run(tmp_path_factory.mktemp("four"), tiny_config(**SETTINGS), "cpu", progress=False)
    for report in run.train():
        if report.step == 4:
            break
    return run.folder


def state_of(run):
    return run.checkpoints.load()


def equal(one, other, path="state"):
    """Two nested states, tensor by tensor."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            equal(a, b, f"{path}[{index}]")
    else:
        assert one == other, path


def lines(run):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.history()]


# ---------------------------------------------------------------- stopping


def test_stop_signals_end_after_the_step_and_the_run_goes_on_exactly(opened):
    whole = opened("whole", **{k.replace(".", "__"): v for k, v in EVERY.items()})
    list(whole.train())
    for number in (signal.SIGINT, signal.SIGTERM):
        more = {k.replace(".", "__"): v for k, v in EVERY.items()}
        run = opened(f"stopped{number}", **more)
        batch = run.data.batch

        def signalled(step, size, seed, part, batch=batch, number=number):
            if step == 3:
                os.kill(os.getpid(), number)  # in the midst of the step
            return batch(step, size, seed, part)

        run.data.batch = signalled
        with pytest.raises(Stopped, match="stopped after step 3 of 6; the same command or cell goes on") as caught:
            list(run.train())
        assert caught.value.signal == number and isinstance(caught.value, KeyboardInterrupt)
        resumed = opened(f"stopped{number}", **more)
        assert resumed.step == 3
        list(resumed.train())
        equal(state_of(whole), state_of(resumed))
        assert lines(whole) == lines(resumed)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_inside_a_step_costs_only_that_step(whole, opened, monkeypatch):
    run = opened()
    apply = type(run.optimizers.adam["generator"]).step

    def interrupted(optimizer, *args):
        apply(optimizer, *args)
        if run.step == 4:
            raise KeyboardInterrupt

    adam = run.optimizers.adam["discriminator"]
    monkeypatch.setattr(adam, "step", lambda: interrupted(adam))
    with pytest.raises(KeyboardInterrupt):
        list(run.train())
    resumed = opened()
    assert resumed.step == 4  # of the checkpoint before; the half step is not in it
    list(resumed.train())
    equal(state_of(whole), state_of(resumed))


@pytest.mark.slow
def test_killed_at_random_times_it_ends_as_if_nothing_had_been(tmp_path):
    """Kill -9, a few rounds; benchmarks/kill.py makes it twenty."""
    settings = [
        "train.max_steps=8", "train.checkpoint_every=2", "train.batch_size=4", "data.train_size=24",
        "model.channels=2", "model.disc_channels=8", "train.evaluate_every=0", "train.sample_every=3",
    ]  # fmt: skip
    command = [sys.executable, "-m", "galiplib.cli", "train", "--device", "cpu"]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    config = load_config("mini", settings)
    list(Run(tmp_path / "whole", config, "cpu", progress=False).train())
    rng, kills = random.Random(0), 0
    while kills < 2:
        process = subprocess.Popen([*command, "--out", tmp_path / "killed"], env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        log, wanted = tmp_path / "killed" / "metrics.jsonl", rng.randrange(1, 5)
        seen = log.stat().st_size if log.is_file() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            steps = list((tmp_path / "killed" / "checkpoints").glob("step_*.pt"))
            if len(steps) >= min(wanted, 2) and (log.stat().st_size != seen or kills == 0):
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.wait()
        kills += 1
    list(Run(tmp_path / "killed", config, "cpu", progress=False).train())
    one, other = (torch.load(tmp_path / name / "checkpoints" / "step_000008.pt") for name in ("whole", "killed"))
    equal(one, other)
    metrics = [[json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
               for n in ("whole", "killed")]  # fmt: skip
    assert [line["step"] for line in metrics[1]] == list(range(1, 9))
    assert [line["loss_g"] for line in metrics[0]] == [line["loss_g"] for line in metrics[1]]


def test_a_second_process_on_one_folder_is_refused(opened):
    run = opened()
    held = FileLock(run.folder / ".lock")  # as another process holds it
    held.acquire()
    with pytest.raises(ConfigError, match="another process is training in"):
        next(run.train())
    held.release()
    reports = run.train()
    next(reports)
    with pytest.raises(Timeout):
        held.acquire(timeout=0)
    reports.close()
    held.acquire(timeout=0)


def test_a_loop_left_by_an_error_is_closed_by_the_next_one(opened):
    """In a notebook the traceback of an error in the loop's body keeps the loop alive."""
    run, kept = opened(), []
    with pytest.raises(ZeroDivisionError):
        reports = run.train()
        kept.append(reports)
        for report in reports:
            1 / (report.step - 3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other = opened()
    assert other.step == 2  # the checkpoint on the way
    assert next(other.train()).step == 4  # the loop that was left has saved step 3 first


def test_the_clock_may_go_backwards(opened, monkeypatch):
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run = opened()
    list(run.train())
    assert run.finished and all(line["seconds"] >= 0 for line in run.history())


def test_a_torn_line_in_the_log_is_made_again(opened):
    run = opened()
    for report in run.train():
        if report.step == 3:
            break
    run.metrics.write_text(run.metrics.read_text() + '{"step": 4, "loss')
    resumed = opened()
    list(resumed.train())
    assert [line["step"] for line in resumed.history()] == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------- damaged files, full disks


def cut(data):
    return data[: random.Random(1).randrange(100, len(data))]


def flipped(data):
    place = random.Random(2).randrange(len(data) // 4, len(data) // 2)
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda data: b"", lambda data: b"x" * 5000])
def test_of_a_damaged_checkpoint_the_one_before_is_used(whole, four_steps, opened, tmp_path, damage):
    shutil.copytree(four_steps, tmp_path / "run")
    before, newest = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=f"{newest.name} .*; going on from {before.name}"):
        resumed = opened()
    assert resumed.step == 2
    with pytest.warns(UserWarning, match="going on from"):
        load_generator(tmp_path / "run")
    half = newest.with_name(f".{newest.name}.a1b2")
    half.write_bytes(b"of a process that was killed while it wrote")
    list(resumed.train())
    assert not half.exists()
    equal(state_of(whole), state_of(resumed))
    for path in resumed.checkpoints.numbered():
        path.write_bytes(damage(path.read_bytes()))
    for opening in (opened, lambda: load_generator(tmp_path / "run")):
        with pytest.raises(WeightsError, match="No whole checkpoint is left: delete .*checkpoints"):
            opening()


def test_a_checkpoint_of_other_networks_is_named(opened, tmp_path):
    list(opened().train())
    list(opened("wide", model__channels=6).train())
    source, target = (tmp_path / name / "checkpoints" / "step_000006.pt" for name in ("wide", "run"))
    target.write_bytes(source.read_bytes())
    with pytest.raises(WeightsError, match="checkpoint of step 6 .* doesn't fit: .*size mismatch"):
        opened()


def test_a_full_disk_leaves_the_checkpoints_before_valid(opened, monkeypatch):
    run = opened()
    fsync = os.fsync

    def full(descriptor):
        if run.step >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="step_000004.pt: .*No space left.*; step_000002.pt is still valid"):
        list(run.train())
    monkeypatch.undo()
    assert not [path for path in run.checkpoints.folder.iterdir() if path.name.startswith(".")]  # nothing half-written
    resumed = opened()
    assert resumed.step == 2
    list(resumed.train())


def test_last_and_best_are_kept(opened, monkeypatch, tmp_path):
    distances = iter([9.0, 5.0, 7.0])
    monkeypatch.setattr("galiplib.runs.run.Run._measure", lambda run: {"frechet_distance": next(distances)})
    run = opened(train__evaluate_every=2, train__checkpoint_every=1)
    list(run.train())
    assert [path.name for path in run.checkpoints.numbered()] == ["step_000006.pt", "step_000005.pt"]
    assert torch.load(run.checkpoints.best)["step"] == 4 == run.guard.best_step
    best = load_generator(run.checkpoints.best)
    assert not torch.equal(best.to_rgb.weight, load_generator(tmp_path / "run").to_rgb.weight)


def test_a_folder_that_cannot_be_written(opened, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(OSError, match="can't write .*config.json: Permission denied"):
        opened()
    assert builtins.open is open


# ---------------------------------------------------------------- numbers that are not finite


@pytest.fixture
def parts(tiny_config):
    config = tiny_config(train__max_steps=4)
    bridge, birds = make_bridge(config), minibirds.build("train", 24)
    return config, bridge, birds


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(parts):
    config, bridge, birds = parts
    networks = make_system(bridge, config)
    optimizers, data = Optimizers(networks, config.train), TrainingData(bridge, birds)
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    images, sentence = data.batch(1, 4, 0)
    images[2, 1, 3, 3] = float("nan")
    noise = {"z": torch.randn(4, 100)}
    report = train_step(networks, optimizers, Batch(images, Text(sentence), noise), config.train, 1)
    assert report.skipped
    for name in ("discriminator", "head"):
        for key, tensor in getattr(networks, name).state_dict().items():
            assert torch.equal(tensor, before[f"{name}.{key}"])
    with torch.no_grad():
        networks.generator.to_rgb.bias[0] = float("inf")
    report = train_step(networks, optimizers, Batch(images, Text(sentence), noise), config.train, 2)
    assert report.skipped and torch.equal(networks.ema.to_rgb.bias, networks.ema.to_rgb.bias.nan_to_num())


def poison(run, steps):
    """Make the gradients of these steps not finite, of every attempt."""
    batch = run.data.batch

    def bad(step, size, seed, part):
        images, sentence = batch(step, size, seed, part)
        return (images * float("nan") if step in steps else images), sentence * (float("nan") if step in steps else 1)

    run.data.batch = bad


def test_too_many_in_a_row_go_back_with_another_order_then_give_up(opened):
    run = opened(train__max_skipped=1, train__max_rollbacks=2)
    poison(run, {4, 5, 6})
    with pytest.warns(UserWarning, match="2 steps in a row .* Back to step 4, rollback 1 of 2"):
        with pytest.raises(TrainingFailed, match="step 6: .*gone back 2 times already .*half of train.lr_g"):
            list(run.train())
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [event["rollbacks"] for event in events] == [1, 2] and events[0]["event"] == "rollback"
    resumed = opened(train__max_skipped=1, train__max_rollbacks=2)
    assert resumed.guard.rollbacks == 2 and resumed.guard.skipped >= 2  # counted for good
    list(resumed.train())  # without the bad data
    assert {line["rollbacks"] for line in resumed.history() if line["step"] > resumed.step - 2} == {2}


def test_skipped_steps_go_back_to_the_newest_not_to_the_best(opened, monkeypatch):
    """A long run whose best evaluation is long past must not lose all since then for a few bad batches."""
    distances = iter([5.0, 9.0, 9.0])
    monkeypatch.setattr("galiplib.runs.run.Run._measure", lambda run: {"frechet_distance": next(distances)})
    run = opened(train__evaluate_every=2, train__max_skipped=0, train__max_rollbacks=1)
    good = run.data.batch

    def bad(step, size, seed, part):
        images, sentence = good(step, size, seed, part)
        return images, sentence * (float("nan") if step == 5 and run.guard.rollbacks == 0 else 1)

    run.data.batch = bad
    with pytest.warns(UserWarning, match="Back to step 4, rollback 1 of 1"):
        list(run.train())
    assert run.finished and run.guard.best_step == 2


def test_a_few_bad_steps_are_skipped_and_the_run_ends(opened):
    run = opened(train__max_skipped=2)
    poison(run, {2, 3, 5})
    list(run.train())
    assert [line["step"] for line in run.history() if line["skipped"]] == [2, 3, 5]
    assert run.guard.skipped == 3 and run.guard.rollbacks == 0


def test_a_bad_evaluation_goes_back_to_the_best(opened, monkeypatch):
    distances = {(2, 0): 10.0, (4, 0): 35.0, (4, 1): 8.0, (6, 1): 9.0}
    run = opened(train__evaluate_every=2, train__rollback_factor=3.0)

    def measured(run):
        return {"frechet_distance": distances[run.step + 1, run.guard.rollbacks]}

    monkeypatch.setattr("galiplib.runs.run.Run._measure", measured)
    first = run.data.batch(3, 4, run.config.train.seed)[0]
    with pytest.warns(UserWarning, match="distance of 35, more than 3 times the best one, 10 at step 2. Back to"):
        list(run.train())
    assert run.finished and run.guard.best == 8.0 and run.guard.rollbacks == 1
    assert [line["step"] for line in run.history()] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in run.evaluations()] == [2, 4, 6]
    assert not torch.equal(first, run.data.batch(3, 4, run.config.train.seed + 1_000_003)[0])


def test_pictures_that_are_not_finite_go_back_too(opened):
    run = opened(train__sample_every=2)
    samples = run._samples
    broken = iter([False, True, False, False])

    def sampled(step):
        if next(broken):
            with torch.no_grad():
                run.system.ema.to_rgb.bias[0] = float("nan")
        return samples(step)

    run._samples = sampled
    with pytest.warns(UserWarning, match="step 4: .*NaN or infinity.* Back to step 2, rollback 1"):
        list(run.train())
    assert run.finished and run.system.ema.to_rgb.bias.isfinite().all()


def test_the_paper_recipe_has_no_guards(parts):
    config, _, _ = parts
    paper = load_config("mini", {"train.recipe": "paper", "train.max_skipped": 0, "train.rollback_factor": 2}).train
    guard = Guard(best=1.0)
    assert guard.after_evaluation(5, 100.0, paper) is None
    assert (paper.lr_g, paper.lr_d, paper.clip_weight, paper.penalty_every, paper.shift) == (1e-4, 4e-4, 4.0, 1, 0)
    assert load_config("mini", {"train.recipe": "paper", "train.lr_g": 2e-4}).train.lr_g == 2e-4


# ---------------------------------------------------------------- accumulation, augmentation


def test_parts_of_a_batch_add_up_to_the_whole(tiny_config):
    birds, results = minibirds.build("train", 24), {}
    for parts in (1, 2, 4):
        exact = {"train__penalty_every": 1, "train__colour": 0.5, "train__precision": "fp32"}
        config = tiny_config(train__max_steps=2, train__accumulate=parts, **exact)
        bridge = make_bridge(config)
        networks = make_system(bridge, config)
        optimizers, data = Optimizers(networks, config.train), TrainingData(bridge, birds)
        report = next(train(networks, optimizers, data, config.train))
        results[parts] = report, {n: p.grad for n, p in networks.named_parameters() if p.grad is not None}
    for parts in (2, 4):
        for name, value in results[1][0].record().items():
            if name != "seconds":
                assert results[parts][0].record()[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        for name, gradient in results[1][1].items():
            if name.startswith(("discriminator", "head")):
                torch.testing.assert_close(results[parts][1][name], gradient, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match="accumulate = 3 must divide train.batch_size = 4"):
        tiny_config(train__accumulate=3)


def test_augmentations_are_what_they_say():
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    same = torch.tensor([[0.0, 1.0, 1.0]] * 3)
    torch.testing.assert_close(augmentation.change_colour(images, same), images)
    brighter = augmentation.change_colour(images, torch.tensor([[0.3, 1.0, 1.0]] * 3))
    torch.testing.assert_close(brighter, images + 0.3)
    grey = augmentation.change_colour(images, torch.tensor([[0.0, 0.0, 1.0]] * 3))
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    flat = augmentation.change_colour(images, torch.tensor([[0.0, 1.0, 0.0]] * 3))
    torch.testing.assert_close(flat, images.mean((1, 2, 3), keepdim=True).expand_as(images))
    holed = augmentation.cut_out(images, torch.tensor([[0.5, 0.5]] * 3), 0.5)
    assert (holed == 0).sum() == 3 * 3 * 9 and torch.equal(holed[:, :, 0], images[:, :, 0])


def test_health_is_in_every_report_and_in_tensorboard(opened):
    run = opened(train__sample_every=3)
    reports = list(run.train())
    assert all(0 <= r.accuracy_real <= 1 and 0 <= r.diversity <= 1 and not r.skipped for r in reports)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert len(board.Images("samples")) == 2
