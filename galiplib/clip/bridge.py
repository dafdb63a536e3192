"""The one door to CLIP (Radford et al., 2021, "Learning Transferable Visual Models From Natural Language Supervision").

Everything that the rest of the library knows of CLIP passes through `ClipBridge`: tokens, text and image embeddings,
the tapped layers that the discriminator looks at, and the mapper inside the generator (GALIP, CVPR 2023, sec. 3.2).
The model behind the door is always `clip.model.CLIP`, whatever its size; all geometry is read from it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from clip.model import CLIP, ResidualAttentionBlock
from clip.simple_tokenizer import SimpleTokenizer
from torch import Tensor, nn

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's own preprocessing, for pixels in [0, 1]
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
CONVENTIONS = ("clip", "reference")
TEARING = re.compile(r"[\u00ad\u200b-\u200d\u2060\ufeff]|(?<!\w)['‘’‚‛](?=\w)")  # unseen; or BPE reads 're in 'red
WORD = re.compile(r"[^\W_](?:['’\u0300-\u036f]*[^\W_])*[\u0300-\u036f]*|[\u2600-\u27bf\U0001f000-\U0001faff]")


@lru_cache(maxsize=1)
def bpe_tokenizer() -> SimpleTokenizer:
    """CLIP's byte-pair tokenizer, with its 49,408 entries."""
    return SimpleTokenizer()


def default_taps(layers: int) -> tuple[int, ...]:
    """The tapped image blocks, 0-based: GALIP's 1, 4, 8 of 12, at the same relative depth in another ViT."""
    return tuple(sorted({min(layers - 1, round(tap * layers / 12)) for tap in (1, 4, 8)}))  # fewer in a shallow one


def default_prompt_layers(layers: int) -> int:
    """How many blocks, from block 1 on, get a prompt token: GALIP's 8 of 12, at the same relative depth."""
    return max(1, min(layers - 1, round(8 * layers / 12)))


def attention(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """A CLIP block's self-attention, (B, L, D) -> (B, L, D).

    Fused, but on a CPU written out where there will be a backward pass: that of the fused kernel is two to six times
    slower in bf16, on some processors in fp32 too (`benchmarks/attention.py`).
    """
    attn, (batch, length, width) = block.attn, x.shape
    q, k, v = (
        F.linear(x, attn.in_proj_weight, attn.in_proj_bias)  # (B, L, 3D)
        .view(batch, length, 3, attn.num_heads, width // attn.num_heads)
        .permute(2, 0, 3, 1, 4)  # (3, B, heads, L, d)
    )
    mask = None if block.attn_mask is None else block.attn_mask[:length, :length].to(x)
    if q.requires_grad and x.device.type == "cpu" and length <= 128:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, L, L)
        y = (scores if mask is None else scores + mask).softmax(-1) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attn.out_proj(y.transpose(1, 2).reshape(batch, length, width))


def run_block(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """One residual attention block of CLIP, (B, L, D) -> (B, L, D)."""
    x = x + attention(block, block.ln_1(x))
    return x + block.mlp(block.ln_2(x))


class ClipBridge(nn.Module):
    """A CLIP and everything that the GAN asks of it.

    Args:
        model: the CLIP. Frozen here, in eval mode, unless `trainable`.
        convention: how images in [-1, 1] become the input of the image encoder. "clip": to [0, 1], antialiased
            resize, normalised, as CLIP was trained. "reference": what GALIP's published code does and its weights
            and scores depend on: rescaled to [0, 1] twice (so to [0.5, 1]) with nearest resizing.
        taps: 0-based blocks whose output the discriminator sees; by default GALIP's, scaled to the depth.
        prompt_layers: number of blocks with a prompt token in the mapper; by default GALIP's, scaled.

    Raises ValueError for a CLIP without a vision transformer, an unknown convention, taps or prompts outside the model.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, model: CLIP, convention: str = "clip", taps: Sequence[int] | None = None,
        prompt_layers: int | None = None, trainable: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not hasattr(model.visual, "transformer"):
            raise ValueError("GALIP needs a CLIP with a vision transformer (ViT-...); this one has a ResNet")
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown CLIP input convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        self.model = model if trainable else model.eval().requires_grad_(False)
        self.mapper_only = getattr(model, "mapper_only", False)  # out of an authors' file: a part of the vision tower
        self.convention, visual = convention, model.visual
        self.layers, self.width = visual.transformer.layers, visual.transformer.width
        self.image_size, self.patch_size = visual.input_resolution, visual.conv1.kernel_size[0]
        self.grid = self.image_size // self.patch_size
        self.embed_dim, self.word_dim = visual.output_dim, model.ln_final.normalized_shape[0]
        self.context_length = model.context_length
        self.taps = tuple(default_taps(self.layers) if taps is None else taps)
        if list(self.taps) != sorted(set(self.taps)) or not self.taps:
            raise ValueError(f"taps {self.taps} must rise from block to block")
        if not 0 <= self.taps[0] <= self.taps[-1] < self.layers:
            raise ValueError(f"taps {self.taps} lie outside this CLIP's {self.layers} blocks, 0..{self.layers - 1}")
        self.prompt_layers = default_prompt_layers(self.layers) if prompt_layers is None else prompt_layers
        if not 1 <= self.prompt_layers <= (most := max(1, self.layers - 1)):  # block 0 has none
            raise ValueError(f"prompt_layers = {prompt_layers} must lie in 1 to {most} with {self.layers} blocks")
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def _need_whole(self, what: str) -> None:
        if self.mapper_only:
            how = 'load_generator(path, clip_model=load_clip("ViT-B/32"))'
            raise ValueError(
                f"{what} can't be encoded: the file has a part of CLIP only. Load it with the whole: {how}"
            )

    # ------------------------------------------------------------ text

    @property
    def _index_of(self) -> dict[int, int] | range:
        """The pieces that this CLIP knows, by their BPE number -> its token ids; OpenAI's are the numbers."""
        vocabulary = getattr(self.model, "vocabulary", None)
        return range(len(bpe_tokenizer().encoder)) if vocabulary is None else {p: i for i, p in enumerate(vocabulary)}

    def _pieces(self, caption: str) -> list[int]:
        """The BPE numbers of a caption, which a small CLIP reads without what is `TEARING` words."""
        return bpe_tokenizer().encode(TEARING.sub("", caption) if hasattr(self.model, "vocabulary") else caption)

    def tokenize(self, captions: str | Sequence[str]) -> Tensor:
        """Captions -> (B, context) int64 token ids, truncated to the context as GALIP does.

        A small CLIP knows only the words of its own data set (`model.vocabulary`, sorted BPE ids): others are left
        out, with one warning that names them as typed. Raises ValueError for an empty caption, or unknown words only.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        if empty := [index for index, text in enumerate(captions) if not text.strip()]:
            raise ValueError(f"caption {empty[0]} is empty: write what the picture should show")
        self._need_whole("captions")
        tokenizer, index_of = bpe_tokenizer(), self._index_of
        start, end = (index_of[tokenizer.encoder[mark]] for mark in ("<|startoftext|>", "<|endoftext|>"))
        rows, unknown = torch.zeros(len(captions), self.context_length, dtype=torch.long), set()
        for row, text in zip(rows, captions, strict=True):
            pieces = self._pieces(text)
            known = [index_of[piece] for piece in pieces if piece in index_of]
            if len(known) < len(pieces):
                stems = {word: self._pieces(re.split("['’]", word)[0]) for word in WORD.findall(TEARING.sub("", text))}
                unknown |= {word for word, own in stems.items() if not all(piece in index_of for piece in own)}
            if not known:
                raise ValueError(f"this CLIP knows none of the words of {text!r}")
            ids = [start, *known[: self.context_length - 2], end]
            row[: len(ids)] = torch.tensor(ids)
        if unknown:
            shown = ", ".join(sorted(unknown)[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
            warnings.warn(f"words this small CLIP never saw are left out: {shown}", stacklevel=2)
        return rows

    def unread(self, caption: str) -> str:
        """The end of a caption that lies behind the context, which `tokenize` cuts off; "" if all of it is read."""
        index_of = self._index_of
        pieces = [piece for piece in self._pieces(caption) if piece in index_of]
        return bpe_tokenizer().decode(pieces[self.context_length - 2 :])

    def encode_words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, context) -> sentence embeddings (B, embed) and word features (B, length, word_dim).

        These are the last layer's, from begin mark to end mark, not projected, and 0 behind a caption's end. Positions
        behind the longest caption's are not computed: the causal mask hides them from the rest.
        """
        self._need_whole("captions")
        return self.read_tokens(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])

    def read_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same of tokens (B, length) that are cut already, without looking at a value."""
        model, (batch, length), ends = self.model, tokens.shape, tokens.argmax(dim=-1)  # the end mark is the highest id
        x = model.token_embedding(tokens) + model.positional_embedding[:length].to(model.token_embedding.weight)
        for block in model.transformer.resblocks:
            x = run_block(block, x)
        words = model.ln_final(x)  # (B, L, D)
        sentence = words[torch.arange(batch, device=tokens.device), ends] @ model.text_projection  # (B, E)
        return sentence, words * (torch.arange(length, device=tokens.device) <= ends[:, None])[:, :, None]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids (B, context) -> sentence embeddings (B, embed), not normalised."""
        return self.encode_words(tokens)[0]

    def project_words(self, words: Tensor) -> Tensor:
        """Word features (B, length, word_dim) -> in the common space (B, length, embed)."""
        return words @ self.model.text_projection

    # ------------------------------------------------------------ images

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, 3, S, S), the image encoder's input in the chosen convention."""
        size, x = (self.image_size, self.image_size), images * 0.5 + 0.5
        if self.convention == "reference":
            if x.shape[-2:] != size:
                x = F.interpolate(x, size=size)
            x = (x + 1) * 0.5
        elif x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
        return (x - self.pixel_mean) / self.pixel_std

    def _tokens_in(self, grid: Tensor) -> Tensor:
        """Patch features (B, width, g, g) -> transformer input (B, 1 + g*g, width): class token, positions, ln_pre."""
        visual = self.model.visual
        x = grid.flatten(2).transpose(1, 2)  # (B, g*g, width)
        start = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return visual.ln_pre(torch.cat([start, x], dim=1) + visual.positional_embedding.to(x.dtype))

    def _grid_out(self, x: Tensor) -> Tensor:
        """(B, 1 + g*g, width) -> patch features (B, width, g, g)."""
        return x[:, 1:].mT.unflatten(2, (self.grid, self.grid))

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> tapped features (B, taps, width, g, g), embeddings (B, embed)."""
        tapped, x = self._run_image(images, self.layers)
        return tapped, self.model.visual.ln_post(x[:, 0]) @ self.model.visual.proj

    def tap_image(self, images: Tensor) -> Tensor:
        """The tapped features of `encode_image` alone: blocks behind the last tap are not computed."""
        return self._run_image(images, self.taps[-1] + 1)[0]

    def encode_regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> their patches in the common space (B, embed, g, g), embeddings (B, embed)."""
        visual = self.model.visual
        x = visual.ln_post(self._run_image(images, self.layers)[1]) @ visual.proj  # (B, 1 + g*g, embed)
        return x[:, 1:].mT.unflatten(2, (self.grid, self.grid)), x[:, 0]

    def _run_image(self, images: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Images -> tapped features, and what leaves the last of `layers` blocks (B, 1 + g*g, width)."""
        self._need_whole("images")
        visual, tapped = self.model.visual, []
        x = self._tokens_in(visual.conv1(self.preprocess(images).to(visual.conv1.weight.dtype)))
        for index, block in enumerate(visual.transformer.resblocks[:layers]):
            x = run_block(block, x)
            if index in self.taps:
                tapped.append(self._grid_out(x))
        return torch.stack(tapped, dim=1), x

    def map_features(self, features: Tensor, prompts: Tensor) -> Tensor:
        """The prompted mapper: features (B, width, g, g) and prompts (B, P, width) -> (B, width, g, g).

        Generated features enter where an image's patches would; block 1 + i sees prompt i as one more token, which is
        dropped behind it (GALIP, sec. 3.2, "CLIP-ViT ... as bridge").
        """
        x = self._tokens_in(features)
        for index, block in enumerate(self.model.visual.transformer.resblocks):
            if 1 <= index <= self.prompt_layers:
                x = run_block(block, torch.cat([x, prompts[:, index - 1 : index]], dim=1))[:, :-1]
            else:
                x = run_block(block, x)
        return self._grid_out(x)
