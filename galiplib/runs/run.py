"""Run folders: a training that describes itself, survives what stops it, and exports its generator.

<folder>/config.json           what the run is made of
<folder>/metrics.jsonl         a line a step
<folder>/evaluations.jsonl     a line an evaluation
<folder>/events.jsonl          a line for each time the run went back to a good checkpoint, and why
<folder>/tensorboard/          the same for TensorBoard
<folder>/samples/              the same captions and noise over the steps
<folder>/clip.safetensors      the small CLIP, if the run trained its own (clip.name: own)
<folder>/checkpoints/          everything needed to go on: the last few, and the best by evaluation
<folder>/generator.safetensors the EMA generator of a finished run, with its record
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..build import (
    cache_name,
    dataset_of,
    held_out_data,
    make_bridge,
    make_data,
    make_system,
    pick_device,
    with_own_clip,
)  # fmt: skip
from ..checkpoints.store import KIND, Checkpoints, ReadOnlyCheckpoints, recorded_config
from ..clip.files import clip_record
from ..clip.training import clip_geometry, learn_clip, new_clip
from ..config import Config, ConfigError, changed
from ..data import DataError
from ..data.batches import Source, TrainingData
from ..data.embeddings import say_cut, unreadable
from ..distributed import Workers, check_batch, lost_is_said, same_failure
from ..files import WeightsError, check_folder, is_ours, save_weights, write_json
from ..images import TooFew, contact_sheet, save_png
from ..sampling.sample import sample
from ..training import Optimizers, StepReport, train
from .choice import begin, check_start
from .guards import Guard, TrainingFailed
from .interrupts import Stopped, StopSignals
from .log import NoLog, RunLog, read_lines

# may change between stop and resume
FREE_KEYS = (
    "eval.", "train.checkpoint_every", "train.keep_checkpoints", "train.sample_every", "train.evaluate_every",
    "train.max_skipped", "train.rollback_factor", "train.max_rollbacks", "data.index", "data.workers",
)  # fmt: skip
EVALUATED = 1000  # pictures of an evaluation on the way
SHOWN = ("loss_d", "loss_g", "similarity")  # of a step's report, beside the progress bar
FAILED = 1000  # above the number of any signal
_IN_TRAINING: WeakValueDictionary[str, Any] = WeakValueDictionary()  # run folder -> the loop that trains in it


class _Reader:
    """A run's data for `train`: no process begins a step before all have their part of the batch and none must stop.

    Attributes:
        whole: whether a step is done and the next one not begun: networks, guard and log all stand at it.
    """

    def __init__(self, data: TrainingData, workers: Workers, signals: StopSignals, max_steps: int) -> None:
        self.data, self.workers, self.signals, self.max_steps = data, workers, signals, max_steps
        self.whole = False

    def batch(self, step: int, size: int, seed: int, part: slice, **wants: Any) -> tuple[Any, ...]:
        """As `TrainingData.batch`; also raises Stopped."""
        asked, problem = self.signals.number, None
        try:
            if asked is None:
                found = self.data.batch(step, size, seed, part, **wants)
        except Exception as error:
            problem = error
        number = self.workers.any(FAILED if problem else asked)  # beside the gradients, all that a step waits for
        if number == FAILED:
            with same_failure():
                if problem:
                    raise problem
        if number is not None:
            goes_on = "the same command or cell goes on from there"
            raise Stopped(f"stopped after step {step - 1} of {self.max_steps}; {goes_on}", number)
        self.whole = False
        return found


class Run:
    """A training run in a folder; opening a folder that has a checkpoint goes on from it.

    Stopped at any step, by whatever means, and opened again, it becomes the run that was never interrupted: bit for
    bit on the CPU with the same number of threads. With `clip.name` "own", opening it the first time trains the small
    CLIP of the run on its data.

    Args:
        allow_changes: go on although the configuration, or the data, differ from what they were.

    Raises:
        ConfigError: if the folder holds a run of another configuration, naming the keys, or of other data; if a batch
            can't be shared evenly by the processes, or these have different configurations, data or folders; if
            `train.start` names another generator (`choice.check_start`).
        WeightsError: if no checkpoint is whole; of a damaged one a warning tells, and the one before is used.
        ProcessLost: if another of several processes is gone or silent.
        OSError: if the folder can't be written; names it.
    """

    def __init__(
        self, folder: str | Path, config: Config, device: str = "auto", progress: bool = True,
        allow_changes: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.config = Path(folder), config
        self._real: Any = None  # the held-out pictures as evaluations on the way have seen them
        self.workers = Workers(pick_device(device))
        self.device = self.workers.device
        self.progress = progress and self.workers.leads
        # what only one process may write, only the leading one does: the others' checkpoints and logs write nothing
        kind = Checkpoints if self.workers.leads else ReadOnlyCheckpoints
        self.checkpoints = kind(self.folder, config.train.keep_checkpoints)
        with lost_is_said(self.workers):
            # compared before anything else, for what follows depends on them
            self.workers.agree(**config.flat())
            check_batch(config.train.batch_size, config.train.accumulate, self.workers.size)
            keys = self._compare(allow_changes)
            with same_failure():
                if config.train.start and not self.checkpoints.numbered():
                    check_start(config, len(self.source))
                if learns := self._lacks_clip(allow_changes):  # does all fit? Better known before minutes of training
                    model = new_clip(clip_geometry(config.clip, config.data), [0, 1])
                    make_system(make_bridge(config, clip_model=model), config)
                else:
                    self._build()
            self._write_config(keys)
            with same_failure():
                if learns:
                    file = self.folder / "clip.safetensors"
                    learn_clip(config, self.source, self.held_out, file, self.device, self.progress)
                    self._build()
                self.optimizers = Optimizers(self.system, config.train)
                if config.train.compile:
                    self.system.compile_networks()
                self.step, self.guard = 0, Guard()
                self._newest = self.checkpoints.numbered()[:1]
                if state := self.checkpoints.load():
                    self._restore(state)
                    if not self.finished:
                        self._check_data(state.get("data"), allow_changes)
                elif config.train.start:
                    begin(config, self.system)
            self.workers.agree(step=self.step)

    def _build(self) -> None:
        self.bridge = make_bridge(with_own_clip(self.config, self.folder), self.device)
        self.system = make_system(self.bridge, self.config)

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        return self.step >= self.config.train.max_steps

    def _bar(self, desc: str):
        return partial(tqdm, desc=desc, mininterval=1) if self.progress else iter

    @cached_property
    def source(self) -> Source:
        """The training split."""
        return make_data(self.config, "train", self._bar("birds"))

    @cached_property
    def held_out(self) -> dict[str, Source]:
        """The splits to measure on."""
        return held_out_data(self.config, self._bar("birds"))

    @cached_property
    def contents(self) -> dict[str, Any]:
        """What tells the training split from other data: part of a checkpoint."""
        return {"pictures": len(self.source), "digest": self.source.fingerprint}

    def _check_data(self, then: dict[str, Any] | None, allow_changes: bool) -> None:
        """Raises ConfigError if a checkpoint, or a CLIP, was trained on other data; says so if that is allowed."""
        try:
            now = self.contents
        except DataError:  # said when training begins
            return
        said = "going on with data that the checkpoint tells nothing of (it is older than that): taken as the same"
        if then is not None:
            if then["digest"] == now["digest"]:
                return
            counts = f"{then['pictures']:,} training pictures then, {now['pictures']:,} now"
            other = f"other data ({counts}; names, sizes or captions differ)"
            if not allow_changes:
                raise ConfigError(
                    f"{self.folder} holds a run on {other}. Choose another folder, bring the data back, allow the "
                    "change (--allow-changes, allow_changes=True), or delete the folder to start anew"
                )
            said = f"going on with {other}"
        if self.workers.leads:
            warnings.warn(said, stacklevel=4)

    @cached_property
    def data(self) -> TrainingData:
        """The training split with its captions through CLIP; made when first asked for, unless set before."""
        bar, name = self._bar("captions through CLIP"), cache_name(self.config)
        # the processes of this machine one after the other: the first makes what the others then find
        with nullcontext() if self.workers.size == 1 else FileLock(self.folder / ".captions"):
            return TrainingData(self.bridge, self.source, name, progress=bar, workers=self.config.data.workers)

    @cached_property
    def sample_captions(self) -> list[str]:
        """Four captions for the sample grids, of photographs those of held-out ones."""
        if own := dataset_of(self.config).captions:
            return list(own)
        for source in (*self.held_out.values(), self.source):
            rows = [range(place * len(source) // 4, len(source)) for place in range(4)]
            texts = [(source.captions[row][0] for row in later) for later in rows]
            found = [next((text for text in own if not unreadable(self.bridge, [text])), "") for own in texts]
            if all(found):
                return found
        raise DataError(f"CLIP knows no word of the captions of {self.config.data.name}")

    def _lacks_clip(self, allow_changes: bool) -> bool:
        """Whether the run's own CLIP is still to be trained."""
        file = self.folder / "clip.safetensors"
        if self.config.clip.name != "own":
            return False
        if file.is_file():
            if not self.checkpoints.numbered() and (pictures := clip_record(file).get("pictures")):
                self._check_data(pictures, allow_changes)
            return False
        if self.workers.size > 1:
            raise ConfigError(
                f"{file} is missing: train this run's own CLIP first, in one process, by "
                f"`galip train-clip --profile {self.config.profile} --out {file}`"
            )
        return True

    # ------------------------------------------------------------ training

    def train(self) -> Generator[StepReport]:
        """Train to the end, yielding every step's report; logs, samples, evaluations and checkpoints on the way.

        Ctrl-C, the notebook's stop button and SIGTERM end it after the current step, with a checkpoint; so does
        leaving the loop. The second Ctrl-C acts at once, and the run goes on from the checkpoint before.

        Several processes must all leave the loop at the same step, if they do.

        Raises:
            Stopped: (a KeyboardInterrupt) when asked to stop; says how to go on.
            ConfigError: if another process is training in this folder.
            DataError: if pictures can't be read, in every process, with a checkpoint of the step before.
            ProcessLost: if another of several processes is gone or silent.
            CheckpointError: if a checkpoint can't be written.
            TrainingFailed: if guards sent the run back more often than `train.max_rollbacks`.
        """
        key = str(self.folder.resolve())
        if left := _IN_TRAINING.pop(key, None):
            left.close()  # a loop in this process that an error in the caller's code left half-way
        _IN_TRAINING[key] = reports = self._train()
        return reports

    def _train(self) -> Generator[StepReport]:
        settings, workers = self.config.train, self.workers
        with ExitStack() as stack:
            stack.enter_context(lost_is_said(workers))
            with same_failure():
                data = self.data  # before anything is locked: this may take minutes
                _ = self.sample_captions
                self._check_evaluation()
            if self.config.clip.damsm is None and workers.leads:  # which chooses among the words
                known = getattr(self.bridge.model, "vocabulary", None)
                say_cut(data.source.captions, self.bridge.context_length, known)
            if workers.leads and (smaller := data.source.smaller(self.config.data.image_size)):
                said = f"{smaller:,} of the {len(data):,} training pictures are smaller than the picture to draw"
                warnings.warn(f"{said}, {self.config.data.image_size} px: enlarged, they teach blur", stacklevel=3)
            if settings.batch_size > len(data) and workers.leads:
                said = f"train.batch_size = {settings.batch_size} is more than the {len(data)} training pictures"
                warnings.warn(f"{said}: a step shows them several times", stacklevel=3)
            if workers.size > 1:
                others = {"held-out pictures": {name: len(source) for name, source in self.held_out.items()}}
                workers.agree(pictures=len(data), captions=data.digest, **others)
            with same_failure():
                if workers.leads:
                    stack.enter_context(self._locked())
                self.checkpoints.sweep()
                went_on = self.checkpoints.numbered()[:1] != self._newest  # another process, meanwhile
                if went_on and (state := self.checkpoints.load()):
                    self._restore(state)
            workers.agree(step=self.step)
            with same_failure():
                if workers.leads:
                    self._check_room()
            log: RunLog | NoLog = RunLog(self.folder, self.step) if workers.leads else NoLog()
            stack.enter_context(log)
            bar = tqdm(
                total=settings.max_steps, initial=self.step, desc=self.config.system, disable=not self.progress,
                mininterval=1,
            )  # fmt: skip
            stack.enter_context(bar)
            signals = StopSignals()
            if workers.size > 1:  # all must end at the same step
                stack.enter_context(signals)
            reader = _Reader(data, workers, signals, settings.max_steps)
            try:
                while not self.finished:
                    start, attempt = self.step, self.guard.rollbacks
                    steps = train(self.system, self.optimizers, reader, settings, start, attempt, workers)
                    reports = self._until_rollback(steps, log)
                    while True:
                        # alone, not while the caller's code runs between two steps
                        with signals if workers.size == 1 else nullcontext():
                            report = next(reports, None)
                        reader.whole = True
                        if report is None:
                            break
                        shown = {name: f"{value:.2f}" for name, value in report.noted.items() if name in SHOWN}
                        bar.set_postfix(shown, refresh=False)
                        bar.update(self.step - bar.n)
                        yield report
            finally:
                log.flush()
                if reader.whole:
                    self.save()
            with same_failure():
                if workers.leads:
                    self.export(self.folder / "generator.safetensors")

    def _until_rollback(self, reports: Iterator[StepReport], log: RunLog | NoLog) -> Iterator[StepReport]:
        """The reports, each with all that belongs to its step done; ends early after going back to a checkpoint."""
        from ..evaluation import distance_of  # torchmetrics takes as long to load as torch

        settings = self.config.train
        for report in reports:
            report = dataclasses.replace(report, rollbacks=self.guard.rollbacks)
            last = report.step >= settings.max_steps
            reason = self.guard.after_step(report, settings)
            log.step(report)
            improved = False
            try:
                if report.step % settings.sample_every == 0 or last:
                    with same_failure():
                        log.samples(report.step, partial(self._samples, report.step))
                due = self.evaluates and (report.step % settings.evaluate_every == 0 or last) and not reason
                if due and (results := self._measured(report.step, log)):
                    log.evaluation(report.step, results)
                    reason = self.guard.after_evaluation(report.step, distance_of(results), settings)
                    improved = self.guard.best_step == report.step
            except FloatingPointError as error:  # pictures that are not finite
                if settings.recipe == "paper":
                    raise
                reason = str(error)
            if reason:
                self._roll_back(report.step, reason, log)
                return
            self.step = report.step
            if improved:
                with same_failure():
                    self.checkpoints.save(self._state(), best=True)
            if self.step % settings.checkpoint_every == 0 and not last:
                log.flush()
                self.save()
            yield report

    @property
    def _quick(self) -> Config:
        """What an evaluation on the way measures: fewer pictures, and only what is quick."""
        quick = {"images": EVALUATED, "per_caption": 1, "metrics": (), "diversity": 0}
        return self.config.model_copy(update={"eval": self.config.eval.model_copy(update=quick)})

    def _check_evaluation(self) -> None:
        """Whether there will be evaluations on the way; what they lack is better known now."""
        self.evaluates = bool(self.config.train.evaluate_every)
        if not self.evaluates:
            return
        from ..evaluation import check_evaluation

        try:
            check_evaluation(self.bridge, self.held_out, self._quick)
        except TooFew as error:
            self.evaluates = False
            if self.workers.leads:
                warnings.warn(f"no evaluation on the way (train.evaluate_every): {error}", stacklevel=4)

    def _measure(self) -> dict[str, Any]:
        """An evaluation on the way."""
        from ..evaluation import measure_generator

        found = measure_generator(self.system.ema, self.bridge, self._quick, self.held_out, False, self._real)
        self._real = found.real  # the next one looks at other generated pictures, but at the same real ones
        return found.record()

    def _measured(self, step: int, log: RunLog | NoLog) -> dict[str, Any] | None:
        """The same, None if held-out data broke since the start: no reason to stop, or to go back."""
        try:
            return self._measure()
        except FloatingPointError:
            raise
        except (ValueError, OSError) as error:  # of data, files, statistics
            log.event(step, "no evaluation", reason=str(error))
            if self.workers.leads:
                warnings.warn(f"step {step}: no evaluation ({error}); the training goes on", stacklevel=2)
            return None

    def _roll_back(self, step: int, reason: str, log: RunLog | NoLog) -> None:
        """Back to a good checkpoint, with another order of the data from there on.

        After steps that were skipped the networks are still good: the newest. After bad pictures: the best.
        """
        guard = self.guard
        bad_pictures = not guard.in_a_row
        guard.roll_back(step, reason, self.config.train)
        state = (bad_pictures and self.checkpoints.load_best(guard.best_step)) or self.checkpoints.load()
        if state is None:
            raise TrainingFailed(f"step {step}: {reason}; there is no checkpoint yet to go back to")
        self._restore(state)
        # What was counted stays counted; only the networks are those of before.
        self.guard = dataclasses.replace(guard, best=self.guard.best, best_step=self.guard.best_step)
        self.workers.wait()  # until all have read theirs
        self.checkpoints.forget_after(self.step)
        log.event(step, "rollback", reason=reason, to=self.step, rollbacks=guard.rollbacks)
        log.forget_after(self.step)
        self.save()
        message = f"step {step}: {reason}. Back to step {self.step}, rollback {guard.rollbacks}"
        warnings.warn(f"{message} of {self.config.train.max_rollbacks}", stacklevel=2)

    # ------------------------------------------------------------ files

    def save(self) -> None:
        """Write a checkpoint of this step; the older ones stay valid until it is whole."""
        with same_failure():
            self.checkpoints.save(self._state())
        self._newest = self.checkpoints.numbered()[:1]

    def _check_room(self) -> None:
        """Raises OSError if the disk has no room for the checkpoints to come, as far as that can be known."""
        learning = sum(weight.nbytes for own in self.optimizers.weights.values() for weight in own)  # Adam: two of each
        one = sum(tensor.nbytes for tensor in self.system.state_dict().values()) + 2 * learning
        kept = self.config.train.keep_checkpoints + self.evaluates - len(self.checkpoints.numbered())
        check_folder(self.checkpoints.folder, one * (1 + max(0, kept)))

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": self.config.model_dump(),
            "networks": self.system.state_dict(),
            "optimizer_d": self.optimizers.adam["discriminator"].state_dict(),
            "optimizer_g": self.optimizers.adam["generator"].state_dict(),
            "guard": self.guard.state(),
            "data": self.contents,
            "threads": torch.get_num_threads(),
            "processes": self.workers.size,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.system.load_state_dict(state["networks"])
            self.optimizers.adam["discriminator"].load_state_dict(state["optimizer_d"])
            self.optimizers.adam["generator"].load_state_dict(state["optimizer_g"])
            self.guard, self.step = Guard(**state["guard"]), state["step"]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(
                f"the checkpoint of step {state.get('step')} in {self.checkpoints.folder} doesn't fit: "
                f"{' '.join(str(error).split())[:200]}; delete the folder to start this run anew"
            ) from None
        now = {"threads": torch.get_num_threads(), "processes": self.workers.size}
        before = {"processes": 1} | {name: state[name] for name in now if name in state}
        if self.device.type != "cpu":  # there the number of threads changes nothing
            before["threads"] = now["threads"]
        other = [name for name in now if before[name] != now[name]]
        if other and not self.finished:
            changes = " and ".join(f"{now[name]} {name} where {before[name]} were used" for name in other)
            warnings.warn(f"going on with {changes}: equal to the uninterrupted run up to rounding only", stacklevel=3)

    def export(self, path: str | Path, record: dict[str, Any] | None = None) -> None:
        """Write the EMA generator as safetensors, weights in fp16, with configuration and provenance."""
        ema = self.system.ema
        tensors = ema.state_dict() | {name: weight.half() for name, weight in ema.named_parameters()}
        save_weights(path, KIND, tensors, {"config": self.config.model_dump(), "steps": self.step, **(record or {})})

    def history(self) -> list[dict[str, Any]]:
        """The reports of all steps so far, from metrics.jsonl."""
        return read_lines(self.metrics)

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations on the way: step, and what `measure_generator` returns."""
        return read_lines(self.folder / "evaluations.jsonl")

    def _samples(self, step: int) -> Path:
        made = sample(self.system.ema, self.bridge, self.sample_captions, count=4, seed=0)
        path = self.folder / "samples" / f"step_{step:06d}.png"
        return save_png(contact_sheet(made.images, columns=4, scale=2), path, {"step": str(step)})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """While entered, no other process trains here."""
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(self.folder / ".lock", timeout=0))
            except Timeout:
                raise ConfigError(
                    f"another process is training in {self.folder}: stop it first, or choose another folder"
                ) from None
            yield

    def _compare(self, allow_changes: bool) -> dict[str, tuple[Any, Any]]:
        """The keys in which the configuration differs from the folder's, none of them if that is allowed."""
        path, keys = self.folder / "config.json", {}
        with same_failure():
            if self.workers.leads:
                begun, exported = self.checkpoints.numbered(), self.folder / "generator.safetensors"
                if not begun and exported.is_file() and not is_ours(exported):
                    raise ConfigError(f"{exported} is there already, and no run's: choose another folder")
                try:
                    before = recorded_config(json.loads(path.read_text())) if path.is_file() else self.config
                except (ValueError, TypeError, AttributeError, KeyError) as error:
                    if not (begun and allow_changes):
                        said = f"{path} is no configuration of a run ({str(error)[:100]})"
                        raise ConfigError(f"{said}: choose another folder, or move it away") from None
                if not allow_changes:
                    keys = {k: v for k, v in changed(self.config, before).items() if not k.startswith(FREE_KEYS)}
                if keys and begun:
                    listed = ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in keys.items())
                    raise ConfigError(
                        f"{self.folder} holds a run of another configuration: {listed}. Choose another folder, set "
                        "these keys back, allow the change (--allow-changes, allow_changes=True), or delete the folder "
                        "to start anew"
                    )
        return keys

    def _write_config(self, keys: dict[str, tuple[Any, Any]]) -> None:
        path = self.folder / "config.json"
        with same_failure():
            if self.workers.leads:
                # other keys, but no checkpoint yet: that run may be under way
                with self._locked() if keys else nullcontext():
                    write_json(path, self.config.model_dump())
        with same_failure():
            if not path.is_file():
                raise ConfigError(
                    f"there is no {path}, which process 0 has just written: the folder of a run must be the same for "
                    "all processes, on a disk that they share"
                )
