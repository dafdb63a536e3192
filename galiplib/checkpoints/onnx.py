"""Generators outside torch: ONNX files that say what they are, checked against torch before anything is written.

NAME.onnx draws (noise, sentence -> pictures), NAME.text.onnx reads (tokens -> sentence), any number at once. ONNX
Runtime runs them, on a CPU faster than torch, and in browsers. With weights in fp16 it still computes in fp32.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..build import make_bridge, text_of, with_own_clip
from ..clip.bridge import CLIP
from ..clip.damsm_files import DamsmBridge
from ..config import Config
from ..files import WeightsError, check_folder, existing, write_atomically
from ..system import Text, TextToImage
from .store import fingerprint, recorded_config

OPSET = 18
DRAWS, READS = "galiplib generator", "galiplib text"  # what a file is for, in its metadata
TRIED, MOST, LEAST = 16, 1e-4, 45.0  # pictures that are compared; their largest difference; dB with weights in fp16
PICTURES, MANY = 64, 5_000  # from how many on "auto" takes an export that is kept, and from how many on it makes one


# ---------------------------------------------------------------- what is exported


class Drawing(nn.Module):
    """A generator and its CLIP as one module: noise (B, Z), sentence (B, E), of some systems words and mask."""

    def __init__(self, generator: TextToImage) -> None:
        super().__init__()
        self.generator, self.bridge = generator, generator.bridge

    def forward(
        self, noise: Tensor, sentence: Tensor, words: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return self.generator.picture_of(noise, Text(sentence, words, mask))


class Reading(nn.Module):
    """Tokens (B, L) -> sentence (B, E); where words are wanted, also (B, L, W), and the mask (B, L)."""

    def __init__(self, bridge: Any, wants: Collection[str]) -> None:
        super().__init__()
        self.bridge, self.words = bridge, "words" in wants

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.bridge, DamsmBridge):  # as its own encoder, whose packing the exporter doesn't know
            encoder: Any = self.bridge.text
            words, (last, _) = encoder.rnn(encoder.encoder(tokens), lengths=(tokens != 0).sum(1))
            sentence = last.transpose(0, 1).flatten(1)
        else:
            sentence, words = self.bridge.read_tokens(tokens)
        return (sentence, words, ~words.any(2)) if self.words else sentence


class OnnxLstm(nn.Module):
    """An nn.LSTM as ONNX has it, over sequences of any length; only to be traced."""

    of_input: Tensor
    of_state: Tensor
    bias: Tensor

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.batch_first, ends = lstm.batch_first, ("", "_reverse")[: 1 + lstm.bidirectional]
        self.settings: dict[str, Any] = {"hidden_size": lstm.hidden_size}
        self.settings |= {"direction": "bidirectional"} if lstm.bidirectional else {}

        def stacked(name: str) -> Tensor:
            gates = [getattr(lstm, f"{name}_l0{end}").detach().chunk(4) for end in ends]  # input, forget, cell, output
            return torch.stack([torch.cat([i, o, f, c]) for i, f, c, o in gates])

        self.register_buffer("of_input", stacked("weight_ih"))
        self.register_buffer("of_state", stacked("weight_hh"))
        self.register_buffer("bias", torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1))

    def forward(
        self, x: Tensor, start: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        alone = x.dim() == 2  # one sequence (L, C)
        x = x[:, None] if alone else x.transpose(0, 1) if self.batch_first else x  # (L, B, C)
        ends, width = len(self.bias), self.settings["hidden_size"]
        state = (ends, x.shape[1], width)
        given = [x, self.of_input, self.of_state, self.bias, None if lengths is None else lengths.int()]
        y, hidden, memory = torch.onnx.ops.symbolic_multi_out(
            "LSTM", [*given, *(start or ())], self.settings, dtypes=(x.dtype,) * 3, version=14,
            shapes=((x.shape[0], ends, x.shape[1], width), state, state),
        )  # fmt: skip
        y = y.transpose(1, 2).flatten(2)  # (L, B, ends * width)
        if alone:
            return y[:, 0], (hidden[:, 0], memory[:, 0])
        return y.transpose(0, 1) if self.batch_first else y, (hidden, memory)


def with_onnx_lstms(module: nn.Module) -> nn.Module:
    """The module, in which ONNX's LSTMs have taken the place of torch's."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.LSTM):
            module.set_submodule(name, OnnxLstm(part))
    return module


# ---------------------------------------------------------------- writing


def can_read(bridge: Any) -> bool:
    """Whether there is a text encoder: authors' files come without."""
    return bridge.text is not None if isinstance(bridge, DamsmBridge) else not bridge.mapper_only


def some_text(bridge: Any, wants: Collection[str]) -> tuple[Tensor | None, Text]:
    """`TRIED` token rows of different lengths, if the bridge can read, and what a generator wants of them."""
    random = torch.Generator().manual_seed(0)
    most = min(12, bridge.context_length)
    lengths = torch.linspace(3, most, TRIED).long()
    behind = torch.arange(most) >= lengths[:, None]  # (16, L)
    if not can_read(bridge):
        words = torch.randn(TRIED, most, bridge.word_dim, generator=random) * ~behind[:, :, None]
        sentence = torch.randn(TRIED, bridge.embed_dim, generator=random)
        return None, Text(sentence, words, behind) if "words" in wants else Text(sentence)
    if isinstance(bridge, DamsmBridge):
        encoder: Any = bridge.text
        known = encoder.encoder.num_embeddings
        tokens = torch.randint(1, known, behind.shape, generator=random)
    else:  # the last two are the marks of begin and end
        known = bridge.model.token_embedding.num_embeddings
        tokens = torch.randint(0, known - 2, behind.shape, generator=random)
        tokens[:, 0] = known - 2
        tokens.scatter_(1, lengths[:, None] - 1, known - 1)
    tokens = tokens.masked_fill(behind, 0)
    return tokens, text_of(bridge, tokens, wants)


def traced(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], most: int | None = None) -> Any:
    """A module as an ONNX model, `onnx.ModelProto`, without any path of this machine in it.

    Args:
        inputs: examples by name; their first dimension may be of any size, as the second of words, mask and tokens.
        most: of that, if there is a limit.

    Raises WeightsError for what can't be exported, ImportError without the packages that do it.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("to export, onnx and onnxscript are needed: pip install 'galiplib[fast]'") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # without the longest one: the tracer would tell it from the others, the file doesn't
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=most and most - 1)
    free = {name: {0: batch, 1: length} if name in ("words", "mask", "tokens") else {0: batch} for name in inputs}
    examples, shapes = tuple(inputs.values()), tuple(free.values())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), examples, dynamic_shapes=shapes, strict=False)
            names: dict[str, Any] = {"input_names": list(inputs), "output_names": outputs}
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
    except Exception as error:  # of any kind: what tracing stumbles over can't be listed
        raise WeightsError(f"this system or option of it can't be exported as ONNX: {_first_line(error)}") from error
    model: Any = made and made.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    model.producer_name, model.producer_version = "galiplib", ""
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def halve(model: Any) -> None:
    """Store in fp16, in place, all weights that lose nothing by it, a cast back to fp32 behind each."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1:
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if (half.astype(np.float32) == values).all():
                casts.append(helper.make_node("Cast", [f"{tensor.name}.fp16"], [tensor.name], to=TensorProto.FLOAT))
                tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}.fp16"))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def finished(model: Any, kind: str, record: dict[str, Any]) -> bytes:
    """The file's content: the model, and behind it what it is, with the checksum of all before."""
    from onnx import ModelProto, helper

    body = model.SerializeToString()
    record = record | {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    metadata = ModelProto()
    helper.set_model_props(metadata, {"kind": kind, "record": json.dumps(record)})
    return body + metadata.SerializeToString()  # protocol buffers may be written one behind the other


@dataclass(frozen=True)
class Exported:
    """A generator as ONNX files, checked."""

    draws: bytes
    reads: bytes | None  # None if there is no text encoder to export
    difference: float  # the largest of `TRIED` pictures and their sentences to those of torch
    decibels: float  # of pictures with weights in fp16 to those before; infinite without

    def write(self, path: str | Path) -> list[Path]:
        """Write NAME.onnx and NAME.text.onnx; returns the paths."""
        path, contents = Path(path), [one for one in (self.draws, self.reads) if one is not None]
        files = [path, path.with_suffix(".text.onnx")][: len(contents)]
        check_folder(path.parent, sum(map(len, contents)))
        for file, content in zip(files, contents, strict=True):
            write_atomically(file, methodcaller("write", content))
        return files


def export(generator: TextToImage, record: dict[str, Any], half: bool = False, text: bool = True) -> Exported:
    """A generator, and its text encoder if `text`, as ONNX models, compared with torch by ONNX Runtime.

    Args:
        record: what is noted of it, besides what it says of itself.
        half: weights in fp16, to which they are rounded if need be.

    Raises:
        WeightsError: for what can't be exported, or gives other pictures than in torch.
        ImportError: without ONNX Runtime or the packages that export.
    """
    runtime()
    if isinstance(generator, OnnxGenerator):
        raise WeightsError("this is an ONNX file already: export the weights that it was made of")
    own = copy.deepcopy(generator).cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    own.bridge.cpu().to(memory_format=torch.contiguous_format)
    bridge, decibels = own.bridge, float("inf")
    noise = torch.randn(TRIED, own.noise_dim, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([noise, torch.linspace(0, 1, TRIED)[:, None]], dim=1) if own.truncates else noise
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", UserWarning)  # of published networks whose pictures depend on their neighbours
        tokens, read = some_text(bridge, own.wants)
        wanted = _in_two(lambda part: own.picture_of(noise[part], read[part]))
        if half:
            for parameter in (*own.parameters(), *bridge.parameters()):
                parameter.data = parameter.data.half().float()
            before, read = wanted, some_text(bridge, own.wants)[1]
            wanted = _in_two(lambda part: own.picture_of(noise[part], read[part]))
            error = (wanted.clamp(-1, 1) - before.clamp(-1, 1)).square().mean().item()
            decibels = 10 * float(np.log10(4 / error)) if error else decibels
    if decibels < LEAST:
        raise WeightsError(f"with weights in fp16 pictures are {decibels:.0f} dB from those before, {LEAST:g} at least "
                           "are asked for: leave them in fp32")  # fmt: skip
    record = record | _said(own) | {"stored": "fp16" if half else "fp32"}
    given = {"noise": noise, **{name: value.clone() for name, value in vars(read).items() if value is not None}}
    with_onnx_lstms(own), with_onnx_lstms(bridge)
    models = [(DRAWS, traced(Drawing(own), given, ["pictures"]), given, {"pictures": wanted})]
    if text and tokens is not None:
        most = None if isinstance(bridge, DamsmBridge) else bridge.context_length
        sides = {name: value for name, value in given.items() if name != "noise"}
        models.append((READS, traced(Reading(bridge, own.wants), {"tokens": tokens}, list(sides), most),
                       {"tokens": tokens}, sides))  # fmt: skip
    difference = 0.0
    for kind, model, inputs, outputs in models:
        if half:
            halve(model)
        try:
            found = _run_in_two(session(model.SerializeToString()), inputs)
        except Exception as error:  # onnxruntime's have no common base
            raise WeightsError(f"ONNX Runtime can't run this system or option of it: {_first_line(error)}") from error
        unlike = max(float((found[name] - value.float()).abs().max()) for name, value in outputs.items())
        if not unlike < MOST:
            what = "pictures" if kind == DRAWS else "sentences"
            raise WeightsError(f"in ONNX Runtime its {what} differ by {unlike:.1e} from torch's, more than {MOST:g}: "
                               "nothing is written")  # fmt: skip
        difference = max(difference, unlike)
    record["difference"] = difference
    draws, *reads = (finished(model, kind, record) for kind, model, *_ in models)
    return Exported(draws, reads[0] if reads else None, difference, decibels)


def _in_two(draw: Any) -> Tensor:
    """What is made of the first of `TRIED`, and of the others together: two sizes of batches."""
    return torch.cat([draw(slice(0, 1)), draw(slice(1, TRIED))]).clone()


def _run_in_two(run: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [output.name for output in run.get_outputs()]
    parts = [run.run(None, {name: value[part].numpy() for name, value in inputs.items()})
             for part in (slice(0, 1), slice(1, TRIED))]  # fmt: skip
    return {name: torch.cat([torch.from_numpy(part[i]).float() for part in parts]) for i, name in enumerate(names)}


def _said(generator: TextToImage) -> dict[str, Any]:
    """What a generator and its bridge say of themselves."""
    bridge: Any = generator.bridge
    small = bridge.vocabulary if isinstance(bridge, DamsmBridge) else getattr(bridge.model, "vocabulary", None)
    return {
        "noise_inputs": generator.noise_dim + generator.truncates, "noise_dim": generator.noise_dim,
        "truncates": generator.truncates, "image_size": generator.image_size, "wants": sorted(generator.wants),
        "convention": bridge.convention, "embed_dim": bridge.embed_dim, "context_length": bridge.context_length,
        "vocabulary": small, "weights": fingerprint(generator),
    }  # fmt: skip


# ---------------------------------------------------------------- reading


def runtime() -> Any:
    """The module onnxruntime. Raises ImportError, saying how to get it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX Runtime is missing: pip install 'galiplib[fast]'") from error
    return onnxruntime


def session(model: bytes | str) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU with as many threads as torch has."""
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxGenerator(TextToImage):
    """A generator in an ONNX file, run by ONNX Runtime on the CPU, in fp32; it mixes no styles (`late_blocks`)."""

    def __init__(self, bridge: Any, run: Any, record: dict[str, Any]) -> None:
        super().__init__(bridge)
        self.run, self.noted, self.wants = run, record["weights"], frozenset(record["wants"])
        self.noise_dim, self.image_size = record["noise_dim"], record["image_size"]
        self.truncates = record["truncates"]
        self.like = nn.Parameter(torch.empty(0, device=bridge.pixel_mean.device), requires_grad=False)  # type, device
        self.register_buffer("digest", torch.tensor(list(bytes.fromhex(self.noted)), dtype=torch.uint8))

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """(B, Z), (B, E) -> (B, 3, H, W)."""
        return self.picture_of(noise, Text(sentence))

    def picture_of(self, noise: Tensor, text: Text) -> Tensor:
        given = {"noise": noise, **vars(text)}
        inputs = {one.name: given[one.name].detach().cpu().numpy() for one in self.run.get_inputs()}
        return torch.from_numpy(self.run.run(None, inputs)[0]).to(noise.device)


def load_onnx(
    path: str | Path, clip_model: CLIP | DamsmBridge | None = None, device: str | torch.device = "cpu"
) -> tuple[OnnxGenerator, Config]:
    """The generator in an ONNX file of `export`, and its configuration; arguments as for `load_generator`.

    Raises WeightsError for a file that is damaged, foreign or a text side, or a CLIP that doesn't fit.
    """
    run, record = opened(existing(path).read_bytes(), path)
    if "config" not in record:
        raise WeightsError(f"{path} is kept for `by_engine` only: load the weights that it was made of")
    config = with_own_clip(recorded_config(record["config"]), Path(path).parent)
    bridge = make_bridge(config, device, clip_model)
    if bridge.embed_dim != record["embed_dim"]:
        found = f"embeddings of {bridge.embed_dim} numbers, {record['embed_dim']} expected"
        raise WeightsError(f"{path} was trained with another CLIP than the given one: {found}")
    return OnnxGenerator(bridge, run, record), config


def opened(content: bytes, path: Any) -> tuple[Any, dict[str, Any]]:
    """A generator's file, read from `path` -> its session, its record; raises as `load_onnx`."""
    try:
        run = session(content)
        metadata = run.get_modelmeta().custom_metadata_map
    except ImportError:
        raise
    except Exception as error:  # onnxruntime's have no common base
        raise WeightsError(f"{path} is damaged or no ONNX file: {str(error)[:200]}") from None
    if metadata.get("kind") == READS:
        raise WeightsError(f"{path} reads captions: the generator is in the file beside it, without .text in its name")
    if metadata.get("kind") != DRAWS:
        raise WeightsError(f"{path} is an ONNX file of somebody else's: `galip export --format onnx` writes ours")
    record = json.loads(metadata["record"])
    if hashlib.sha256(content[: record["bytes"]]).hexdigest() != record["sha256"]:
        raise WeightsError(f"{path} is damaged: its checksum is wrong")
    return run, record


# ---------------------------------------------------------------- the engine that draws


def engine_of(generator: TextToImage) -> str:
    """What draws its pictures: "torch" or "onnx"."""
    return "onnx" if isinstance(generator, OnnxGenerator) else "torch"


def kept_at(generator: TextToImage) -> Path:
    """Where its export for `by_engine` is kept, by the weights' fingerprint: $XDG_CACHE_HOME/galiplib, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "galiplib" / f"{fingerprint(generator)}.onnx"


def by_engine(
    generator: TextToImage, engine: str = "auto", pictures: int = 1, say: Callable[[str], Any] = print
) -> TextToImage:
    """A generator in fp32 as an engine draws its `pictures`; equal up to rounding.

    "onnx" exports it once for its weights, which takes as long as some thousands of small pictures. "auto" is torch,
    unless ONNX Runtime is installed, the generator is on a CPU, and it pays: an export is kept and `PICTURES` or more
    are drawn, or so `MANY` that it is worth making one. `say` is told of an export, and of one that failed.

    Raises ValueError for an ONNX file that torch is to draw, as `export` does with "onnx".
    """
    if isinstance(generator, OnnxGenerator):
        if engine == "torch":
            raise ValueError("torch can't draw an ONNX file: give the weights that it was made of")
        return generator
    kept, device = kept_at(generator), next(generator.parameters()).device.type
    if engine == "auto":
        here = find_spec("onnxruntime") and (kept.is_file() or (find_spec("onnxscript") and pictures >= MANY))
        engine = "auto" if here and device == "cpu" and pictures >= PICTURES else "torch"
    if engine == "torch":
        return generator
    runtime()
    try:
        try:
            run, record = opened(existing(kept).read_bytes(), kept)
        except WeightsError:  # there is none, or it is damaged
            say(f"exporting the generator for ONNX Runtime, once for these weights: {kept}")
            check_folder(kept.parent)
            export(generator, {}, text=False).write(kept)
            run, record = opened(kept.read_bytes(), kept)
    except (WeightsError, OSError) as error:
        if engine == "onnx":
            raise
        say(f"drawn by torch: {error}")
        return generator
    return OnnxGenerator(generator.bridge, run, record)
