"""Files that are whole or absent: atomic writes, and weights as safetensors with a provenance record."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"  # what ships with the package
# what files of ours hold: weights, walks; a picture's text; results; tables
OURS = (b"galiplib", b"Xtcheckpoint\0", b'"left_out"', b"is a standard error.")
# under which trainings keep a network's tensors; an average's come before those of what it averages
WRAPPINGS = (
    "params_ema", "g_ema", "G_ema", "model_ema", "ema", "ema_state_dict", "state_dict_ema", "model", "state_dict",
    "model_state_dict", "params", "module", "generator",
)  # fmt: skip
AVERAGE = re.compile(r"^(?:module\.)?(?:ema_model|averaged_model|model_ema|ema)\.")  # before the names of an average
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+|_orig_mod\.")  # of DDP, torch.compile, Lightning
COUNTERS = ("n_averaged", "initted", "step", "num_updates", "decay")  # beside an average's weights


class WeightsError(ValueError):
    """A weights file that is missing, damaged or of another kind; the message names it and says what would be right."""


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name, sync it, rename it: readers see the old file or the whole new one.

    Raises OSError, naming the path, if its folder can't be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(f"can't write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_target(path: str | Path, *endings: str, force: bool = False) -> Path:
    """A file that is to be written after long work -> its path; what stands in the way is known before.

    Raises ValueError for another ending than these; FileExistsError for a file that isn't ours, unless `force`; OSError
    as `check_folder`, or where a folder has that name.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{path} must have a name that ends in {' or '.join(endings)}")
    check_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give a file's name")
    if not force and path.exists() and not is_ours(path):
        raise FileExistsError(f"{path} is there already and galip didn't write it: choose another name, or --force")
    return path


def check_folder(folder: str | Path, room: int = 2**20) -> None:
    """Raises OSError, naming it, for a folder that can't be made or written, or without `room` bytes on its disk."""
    nearest = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"can't write to {folder}: {nearest} is a file")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise OSError(f"can't write to {folder}: {error.strerror or error}") from None
    if (free := shutil.disk_usage(nearest).free) < room:
        raise OSError(f"can't write to {folder}: it takes {room:,} bytes, and its disk has {free:,} left")


def is_ours(path: str | Path) -> bool:
    """Whether a file looks as if this package had written it: what is noted in its first bytes, or in a checkpoint."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("data.pkl") and OURS[0] in archive.read(name) for name in archive.namelist())
        with open(path, "rb") as stream:
            head = stream.read(2**20)
    except (OSError, zipfile.BadZipFile):
        return False
    return any(mark in head for mark in OURS)


def free_name(path: Path) -> Path:
    """The path, or the first of `name_2`, `name_3`, ... that isn't there yet."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def save_weights(path: str | Path, kind: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors as safetensors with `kind` and a JSON record (configuration, provenance) in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob = safetensors.torch.save(tensors, metadata={"kind": kind, "record": json.dumps(record)})
    write_atomically(path, lambda stream: stream.write(blob))


def load_weights(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote -> tensors, record. Raises WeightsError if absent, damaged, or of another kind."""
    path = existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from None
    if metadata.get("kind") != kind:
        raise WeightsError(f"{path} holds {metadata.get('kind', 'something unknown')!r}, not {kind!r}")
    try:
        return tensors, json.loads(metadata.get("record", "{}"))
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path} is damaged: its record is no JSON ({error})") from None


def existing(path: str | Path) -> Path:
    """The path of a weights file. Raises WeightsError if there is none."""
    if not Path(path).is_file():
        raise WeightsError(f"there is no weights file {path}")
    return Path(path)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file looks like safetensors: eight bytes of header length, then a JSON object."""
    with open(path, "rb") as stream:
        return stream.read(9)[8:] == b"{"


def is_foreign(path: str | Path) -> bool:
    """Whether a file is safetensors, but none of `save_weights`."""
    try:
        with safetensors.safe_open(existing(path), framework="pt") as file:
            return "kind" not in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def _harmless() -> list[Any]:
    """What files of trainings hold beside tensors, and nothing of a file's choosing runs where it is made."""
    scalar = np.float64(0).__reduce__()[0]  # makes numpy's numbers; its module was renamed
    types = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    return [argparse.Namespace, np.dtype, *types, scalar, (scalar, "numpy.core.multiarray.scalar")]


def load_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors, containers, numbers and strings, nothing that could run code.

    Or the tensors of anyone's safetensors. Raises WeightsError for a file that is absent, truncated, or holds any other
    Python object.
    """
    path = existing(path)
    if is_foreign(path):
        return safetensors.torch.load_file(path)
    with open(path, "rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    try:
        if zipped and not zipfile.is_zipfile(path):
            raise WeightsError(f"{path} is damaged: its end is missing, as after a download or copy that broke off")
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch itself compares no checksums
                    raise WeightsError(f"{path} is damaged: the checksum of {damaged} in it is wrong")
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)|REDUCE|BUILD|INST|NEWOBJ", str(error)):
            raise WeightsError(
                f"{path} holds Python objects besides tensors ({found.group(1) or found.group(0)}), and loading them "
                "could run code: refused. Right would be a file with state dicts and numbers only, as by "
                "torch.save(model.state_dict(), path)"
            ) from None
        raise WeightsError(f"{path} is damaged or no file of torch.save") from None
    except Exception as error:  # of any kind: what the bytes of a broken file lead to can't be listed
        raise WeightsError(f"{path} is damaged or no file of torch.save: {str(error)[:200]}") from None


def state_dict(content: Any, what: str) -> dict[str, Tensor]:
    """The tensors by name in what `load_torch` gave: under `WRAPPINGS`, relieved of `PREFIXES`, nothing beside them.

    Of an average and what it averages, the average. Raises WeightsError if there are none; begins with `what` and says
    what is there.
    """
    if isinstance(content, dict):
        for name in WRAPPINGS:
            if isinstance(content.get(name), dict):
                return state_dict(content[name], what)
        found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        tensors = {AVERAGE.sub("", name): tensor for name, tensor in found.items() if AVERAGE.match(name)} or found
        if any("." in name for name in tensors):
            return {PREFIXES.sub("", name): tensor for name, tensor in tensors.items() if name not in COUNTERS}
    raise WeightsError(f"{what} (name -> tensor), but {contents(content)}")


def contents(content: Any, inner: bool = True) -> str:
    """In a few words what `load_torch` gave, for a message: its type, the first keys of a dict and of those in it."""
    if not isinstance(content, dict):
        return type(content).__name__
    deeper = {key for key, value in content.items() if inner and isinstance(value, dict) and value}
    shown = [f"{key} ({contents(content[key], False)})" if key in deeper else str(key) for key in list(content)[:5]]
    listed = ", ".join(shown) + ", ..." * (len(content) > 5)
    return f"dict with {listed}" if inner and listed else listed or "dict"


def fit(module: torch.nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """`load_state_dict` in fp32.

    Raises WeightsError with the first few missing or unexpected names and unlike shapes (name, found, expected).
    """
    wanted = module.state_dict()
    problems = []
    for kind, names in (("missing", wanted.keys() - tensors.keys()), ("unexpected", tensors.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{kind}: {', '.join(sorted(names)[:3])}{more}")
    unlike = [n for n, t in tensors.items() if n in wanted and t.shape != wanted[n].shape]
    problems += [f"{n} is {tuple(tensors[n].shape)}, expected {tuple(wanted[n].shape)}" for n in unlike[:3]]
    if problems:
        raise WeightsError(f"{what} doesn't fit: {'; '.join(problems)}")
    module.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})


def require(path: str | Path, made_by: str) -> Path:
    """The path, if it exists; FileNotFoundError says what makes it (a notebook, a command)."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: {made_by} makes it")
    return Path(path)
