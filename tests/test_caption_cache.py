import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip
from galiplib.data import embeddings as caption_cache
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.data.embeddings import sentence_embeddings, unique_captions

CAPTIONS = unique_captions([["a red bird", "a small blue bird"], ["a red bird", "a white bird"], ["a bird"]])


@pytest.fixture
def counted(small_bridge, monkeypatch):
    """The bridge, and how many captions went through it."""
    seen = []
    encode = small_bridge.encode_text
    monkeypatch.setattr(small_bridge, "encode_text", lambda tokens: (seen.append(len(tokens)), encode(tokens))[1])
    return small_bridge, seen


def test_captions_go_through_clip_once_and_are_memory_mapped(tmp_path, counted):
    bridge, seen = counted
    first = sentence_embeddings(bridge, CAPTIONS, "birds-train", tmp_path)
    again = sentence_embeddings(bridge, CAPTIONS, "birds-train", tmp_path)
    assert sum(seen) == len(CAPTIONS) == 4
    assert isinstance(again, np.memmap) and not again.flags.writeable
    assert np.array_equal(first, again)
    np.testing.assert_allclose(sentence_embeddings(bridge, CAPTIONS), first)  # without a name: in memory
    assert not isinstance(sentence_embeddings(bridge, CAPTIONS), np.memmap)


def test_other_captions_or_another_clip_are_computed_anew(tmp_path, counted, small_clip):
    bridge, seen = counted
    sentence_embeddings(bridge, CAPTIONS, "birds-train", tmp_path)
    sentence_embeddings(bridge, CAPTIONS[:3], "birds-train", tmp_path)
    assert sum(seen) == 7 and len(list(tmp_path.glob("*.f32"))) == 1  # the first file is of no use any more
    torch.manual_seed(1)
    geometry = {
        "embed_dim": 32, "image_resolution": 56, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 8,
        "context_length": 16, "transformer_width": 64, "transformer_heads": 2, "transformer_layers": 2,
    }  # fmt: skip
    other = ClipBridge(new_clip(geometry, small_clip.vocabulary).eval().requires_grad_(False))
    assert not np.allclose(sentence_embeddings(other, CAPTIONS[:3], "birds-train", tmp_path),
                           sentence_embeddings(bridge, CAPTIONS[:3], "birds-train", tmp_path))  # fmt: skip
    assert sum(seen) == 7 and len(list(tmp_path.glob("*.f32"))) == 2


def test_an_interrupted_computation_goes_on(tmp_path, counted, monkeypatch):
    bridge, seen = counted
    monkeypatch.setattr(caption_cache, "BATCH", 1)

    def stop_after_two(batches):
        for done, start in enumerate(batches):
            if done == 2:
                raise KeyboardInterrupt
            yield start

    with pytest.raises(KeyboardInterrupt):
        sentence_embeddings(bridge, CAPTIONS, "birds-train", tmp_path, stop_after_two)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes() + b"half a row")
    resumed = sentence_embeddings(bridge, CAPTIONS, "birds-train", tmp_path)
    assert sum(seen) == len(CAPTIONS) and not list(tmp_path.glob("*.part"))
    np.testing.assert_allclose(resumed, sentence_embeddings(bridge, CAPTIONS), atol=1e-6)


def test_training_reads_the_same_batches_from_memory_and_from_the_file(tmp_path, tiny_config):
    from galiplib.build import make_bridge

    bridge, birds = make_bridge(tiny_config()), minibirds.build("train", 12)
    plain, stored = TrainingData(bridge, birds), TrainingData(bridge, birds, "birds", tmp_path)
    for step in (1, 2, 5):
        for one, other in zip(plain.batch(step, 4, 0), stored.batch(step, 4, 0), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_all_captions_of_cub_need_less_than_300_mb(tmp_path):
    """117,880 captions at ViT-B/32's 512 numbers each, written, mapped and read from end to end."""
    code = textwrap.dedent(
        f"""
        import resource, sys
        import torch
        from galiplib.data.embeddings import sentence_embeddings, unique_captions
        from galiplib.clip.bridge import CLIP, ClipBridge

        model = CLIP(512, 32, 1, 64, 32, 2, 8, 64, 1, 1).float().eval().requires_grad_(False)
        bridge = ClipBridge(model)
        tokens = torch.tensor([[6, 7]] * 256)
        bridge.encode_text(tokens)  # what any first use loads
        bridge.tokenize = lambda captions: tokens[:len(captions)]  # what is long is the list, not a caption

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB

        before = peak()
        words = "red blue small long white wings belly crown beak with and a the bird has".split()
        captions = [[" ".join(words[(i * 10 + j) // 15**k % 15] for k in range(11)) for j in range(10)]
                    for i in range(11788)]
        found = sentence_embeddings(bridge, unique_captions(captions), "cub", {str(tmp_path)!r})
        assert found.shape == (117880, 512), found.shape
        float(found.sum())  # touches every page
        print(peak() - before)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300
