"""LAFITE's networks from its authors' files: network snapshots, which are pickles with code, read without running it.

A snapshot holds whole modules, each with the text of its source, which StyleGAN's own loader executes. Here every
object in it is looked up in a short list of harmless makers, and only the tensors of the modules are kept.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import WRAPPINGS, WeightsError, contents, existing, state_dict

NETWORKS = ("G_ema", "G", "D")
KNOWN_BY = "mapping.w_avg"  # what LAFITE's generators have, and no other system's
WAY_OUT = (
    "Way out, with LAFITE's own code, if you trust the file: torch.save({'G_ema': data['G_ema'].state_dict()}, "
    "'lafite.pth'), which is read here"
)


class _Stub:
    """What stands for numbers of NumPy among a module's settings."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _storage(blob: bytes) -> Any:
    return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride).clone()


class _Reader(pickle.Unpickler):
    """An unpickler that calls nothing but what is listed here."""

    def __init__(self, stream: io.BufferedReader, path: Path) -> None:
        super().__init__(stream)
        self.path = path
        self.makers: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "dnnlib.util.EasyDict": dict,
            "torch.storage._load_from_bytes": _storage,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch_utils.persistence._reconstruct_persistent_obj": lambda meta: meta,  # its source is left text
            "numpy.dtype": _Stub,
            "numpy.core.multiarray.scalar": _Stub,
            "numpy._core.multiarray.scalar": _Stub,
        }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.makers:
            raise WeightsError(
                f"{self.path} holds {module}.{name}, and loading that could run code: refused. {WAY_OUT}"
            )
        return self.makers[f"{module}.{name}"]


def is_snapshot(path: Path) -> bool:
    """Whether a file looks like a pickle of persistent modules, as StyleGAN's code writes them."""
    with open(existing(path), "rb") as stream:
        start = stream.read(1 << 16)
    return start[:1] == b"\x80" and b"torch_utils.persistence" in start


def load_snapshot(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a snapshot's networks by name, on the CPU.

    Raises:
        WeightsError: for a file that is damaged, without networks, or with objects that are none of a snapshot's.
    """
    try:
        with open(path, "rb") as stream:
            content = _Reader(stream, path).load()
        found = {name: _tensors(content[name]) for name in NETWORKS if name in content}
    except WeightsError:
        raise
    except Exception as error:  # of any kind: what the bytes of a broken file lead to can't be listed
        raise WeightsError(f"{path} is damaged or no network snapshot: {str(error)[:200]}. {WAY_OUT}") from None
    if not found:
        raise WeightsError(f"{path} is a snapshot without networks ({', '.join(NETWORKS)}), but {contents(content)}")
    return found


def _tensors(module: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a module and of those within it."""
    state = module["state"]
    here = {**state["_parameters"], **state["_buffers"]}
    found = {prefix + name: tensor for name, tensor in here.items() if isinstance(tensor, Tensor)}
    for name, child in state["_modules"].items():
        found |= _tensors(child, f"{prefix}{name}.") if child is not None else {}
    return found


# ---------------------------------------------------------------- LAFITE's generator


def of_lafite(content: Any, path: Path) -> dict[str, Any] | None:
    """A snapshot or state dict of LAFITE's generator as a checkpoint of ours; None for anything else.

    Raises:
        WeightsError: if it lacks what every one of them has.
    """
    if not isinstance(content, dict):
        return None
    given = next(
        (content[name] for name in (*NETWORKS[:2], *WRAPPINGS) if isinstance(content.get(name), dict)), content
    )
    if not any(str(name).endswith(KNOWN_BY) for name in given):
        return None
    found = state_dict(given, f"{path} holds no state dict of LAFITE's generator")
    tensors = {f"ema.{name}": tensor for name, tensor in found.items() if not name.endswith("resample_filter")}
    return {"config": _configuration(path, found), "networks": {**tensors, "ema.path_mean": torch.zeros(())}}


def _configuration(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The generator's geometry, read from the shapes."""
    sides = sorted({int(found[1]) for name in tensors if (found := re.match(r"synthesis\.b(\d+)\.", name))})
    try:
        model = {
            "image_size": sides[-1],
            "channels": tensors[f"synthesis.b{sides[-1]}.torgb.weight"].shape[1],
            "most_channels": tensors[f"synthesis.b{sides[0]}.const"].shape[0],
            "noise_dim": tensors["mapping.fc0.weight"].shape[1],
            "reference": True,
        }
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path} lacks {error}, which every generator of LAFITE's authors has") from None
    return {"profile": "reference", "system": "lafite", "clip": {"name": "ViT-B/32"}, "model": model}
