"""CLIP: the bridge to it, its files, and the training of small ones."""

import sys
import warnings
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class _OnDemand(ModuleType):
    """OpenAI's package `clip`, not run yet: its `model` and `simple_tokenizer` can be imported all the same.

    The package itself imports torchvision, which takes as long as torch: it is run when a name in it is asked for.
    """

    def __getattr__(self, name: str) -> Any:
        loader = self.__spec__.loader if self.__spec__ else None
        if name.startswith("__") or loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        object.__setattr__(self, "__class__", ModuleType)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            loader.exec_module(self)
        return getattr(self, name)


if "clip" not in sys.modules and (spec := find_spec("clip")):
    sys.modules["clip"] = module_from_spec(spec)
    sys.modules["clip"].__class__ = _OnDemand
