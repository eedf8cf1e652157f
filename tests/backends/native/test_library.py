"""The native decoder: every kernel path against the torch decoder, and itself in other steps and with other threads."""

from __future__ import annotations

import platform
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoders import PATHS, SHAPES, Plain, RoundedCache, embed, forward, meant, natives, quantized_inputs, run
from mobillama_v.backends.native import library
from mobillama_v.backends.native.runtime import NativeSequence
from mobillama_v.config import DecoderConfig

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")


def error(got: Tensor, expected: Tensor) -> float:
    """Greatest difference, in standard deviations of the logits."""
    return float((got - expected).abs().max() / expected.std())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_logits_are_those_of_torch_with_the_same_roundings(shape: str, bits: int, path: str) -> None:
    """150 positions cross a chunk, groups of queries and blocks of keys; logits are compared at each.

    What is left is the order of sums, and the rare number that it puts on the other side of a rounding: in 8-bit
    activations that is 1/127 of the block's largest, which 2 or 3 layers carry on. Measured over all: a root mean
    square of at most 0.0002 at 16 bits and 0.014 at 4 and 8, a largest of 0.002 and 0.09; the packed model is 0.4 from
    the float one at 4 bits, so that this sees much less than a wrong nibble, scale or position.
    """
    spec = SHAPES[shape]
    model = meant(Plain(spec), bits)
    embeds = model.language_model.embed_tokens(torch.randint(0, spec.vocab_size, (150,)))
    native = natives(Plain(spec), bits, path=path)
    assert native.path == path
    if bits != 16:
        quantized_inputs(model)
    expected = model.logits(embeds, RoundedCache(bits))
    pieces = [37, *[1] * 9, 2, 3, 4, 5, 90]
    got = run(native, embeds, pieces)
    at = torch.tensor(pieces).cumsum(0) - 1
    assert error(got, expected[at]) < (0.02 if bits == 16 else 0.2)
    difference = (got - expected[at]).pow(2).mean().sqrt() / expected.std()
    assert difference < (0.002 if bits == 16 else 0.04)


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.005), (8, 0.08), (4, 0.6)])
def test_packing_costs_what_its_bits_say(bits: int, tolerance: float) -> None:
    """Against the float model itself, root mean square in standard deviations; measured: 0.0013, 0.04 and 0.41.

    A block of 32 numbers of a normal distribution has a largest of about 2.1 deviations, so that 4 bits round with an
    error of 0.08 deviations and 8 bits with 0.005, seven matrices a layer.
    """
    spec = SHAPES["shared"]
    model = Plain(spec)
    embeds = model.language_model.embed_tokens(torch.randint(0, spec.vocab_size, (60,)))
    got = run(natives(model, bits), embeds, [1] * 60)
    difference = (got - model.logits(embeds)).pow(2).mean().sqrt() / got.std()
    assert difference < tolerance


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("bits", "shape"), [(4, "grouped"), (4, "own"), (8, "own"), (16, "grouped"), (16, "own")])
def test_any_steps_and_any_threads_give_the_same_bits(bits: int, shape: str, path: str) -> None:
    model = Plain(SHAPES[shape])  # with heads of half a block and of a whole one
    embeds = torch.randn(150, SHAPES[shape].hidden_size)
    alone = natives(model, bits, path=path)
    expected = run(alone, embeds, [150])[-1]
    for steps in ([1] * 150, [149, 1], [3, 130, 17]):
        assert torch.equal(run(alone, embeds, steps)[-1], expected), steps
    for threads in (2, 5):
        native = natives(model, bits, threads=threads, path=path)
        for steps in ([150], [140, *[1] * 10]):
            assert torch.equal(run(native, embeds, steps)[-1], expected), (threads, steps)


@pytest.mark.skipif(not {"avx2", "vnni"} <= set(PATHS), reason="this processor has no AVX-512 VNNI")
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_vnni_and_avx2_give_the_same_bits(bits: int) -> None:
    """Both sum the same whole numbers, exactly, and floats in one order."""
    model, embeds = Plain(SHAPES["own"]), torch.randn(70, SHAPES["own"].hidden_size)
    steps = [33, *[1] * 4, 2, 3, 28]
    assert torch.equal(*(run(natives(model, bits, path=path), embeds, steps) for path in ("avx2", "vnni")))


@pytest.mark.parametrize("bits", [4, 16])
def test_sequences_together_are_each_alone(bits: int) -> None:
    spec = SHAPES["shared"]
    model = natives(Plain(spec), bits, threads=2)
    prompts = [torch.randn(length, 64) for length in (5, 140, 1, 33)]
    tokens = torch.randint(0, spec.vocab_size, (4, 6))
    alone = []
    for prompt, row in zip(prompts, tokens, strict=True):
        sequence = NativeSequence(model, 200)
        alone.append([forward(model, [sequence], [prompt])[0]])
        alone[-1] += [forward(model, [sequence], [row[i : i + 1]])[0] for i in range(6)]
    sequences = [NativeSequence(model, 200) for _ in prompts]
    together = [forward(model, sequences, prompts)]
    together += [forward(model, sequences, list(tokens[:, i : i + 1])) for i in range(6)]
    for i, mine in enumerate(alone):
        assert all(torch.equal(a, b[i]) for a, b in zip(mine, together, strict=True))


def test_many_sequences_cross_a_chunk() -> None:
    model = natives(Plain(SHAPES["shared"]), 8, threads=2)
    prompts = [torch.randn(1 + i % 3, 64) for i in range(200)]
    together = forward(model, [NativeSequence(model, 4) for _ in prompts], prompts)
    for i in (0, 63, 64, 127, 199):
        assert torch.equal(forward(model, [NativeSequence(model, 4)], [prompts[i]])[0], together[i])


def test_tokens_are_their_embeddings() -> None:
    spec = SHAPES["shared"]
    model = natives(Plain(spec), 8)
    ids = torch.randint(0, spec.vocab_size, (20,))
    first, second = (NativeSequence(model, 20) for _ in range(2))
    assert torch.equal(forward(model, [first], [ids]), forward(model, [second], [embed(model, ids)]))


def test_threads_that_call_at_once_take_turns() -> None:
    model = natives(Plain(SHAPES["shared"]), 4, threads=2)
    prompts = [torch.randn(30 + i, 64) for i in range(4)]
    expected = [run(model, prompt, [1] * len(prompt))[-1] for prompt in prompts]
    got: dict[int, Tensor] = {}

    def work(i: int) -> None:
        got[i] = run(model, prompts[i], [1] * len(prompts[i]))[-1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], expected[i]) for i in range(4))


def test_calls_that_cannot_be_leave_a_sequence_as_it_was() -> None:
    spec = SHAPES["shared"]
    model, other = natives(Plain(spec), 8), natives(Plain(spec), 8)
    sequence = NativeSequence(model, 10)
    prompt = torch.randn(6, 64)
    with pytest.raises(RuntimeError, match="room for 10 more and was given 11"):
        forward(model, [sequence], [torch.randn(11, 64)])
    with pytest.raises(RuntimeError, match="token 97 is not in a vocabulary of 97"):
        forward(model, [sequence], [torch.tensor([97])])
    with pytest.raises(RuntimeError, match="token -1 is not"):
        forward(model, [sequence], [torch.tensor([-1])])
    with pytest.raises(RuntimeError, match="given twice"):
        forward(model, [sequence, sequence], [prompt[:1], prompt[:1]])
    with pytest.raises(RuntimeError, match="another model"):
        forward(model, [NativeSequence(other, 10)], [prompt])
    with pytest.raises(RuntimeError, match="was given 0"):
        forward(model, [sequence], [prompt[:0]])
    with pytest.raises(ValueError, match="32 wide and the model 64"):
        forward(model, [sequence], [torch.randn(2, 32)])
    with pytest.raises(RuntimeError, match="context of 300"):
        NativeSequence(model, 301)
    assert torch.equal(forward(model, [sequence], [prompt])[0], run(model, prompt, [6])[0])


def test_a_head_of_odd_width_is_not_for_it() -> None:
    spec = DecoderConfig(97, 48, 64, 2, 4, 4, 64)
    with pytest.raises(RuntimeError, match="refuses this model: the width of a head must be a multiple of 8"):
        natives(Plain(spec), 8)


def test_traffic_counts_the_shared_network_once_a_layer() -> None:
    spec = SHAPES["shared"]  # matrices padded to multiples of 16 and 32; 544 bytes for 512 weights
    streamed, cached = natives(Plain(spec), 8).traffic
    assert streamed == (112 * 64 + 3 * 4 * 64 * 64) * 544 // 512
    assert cached == 3 * 3 * 64 * 192 * 544 // 512


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="manylinux on x86-64")
def test_it_loads_on_systems_of_2018() -> None:
    """What a wheel for manylinux_2_28 may ask of glibc and libstdc++."""
    names = Path(library.library()._name).read_bytes()
    assert max(map(int, re.findall(rb"GLIBC_2\.(\d+)", names))) <= 28
    assert max(map(int, re.findall(rb"GLIBCXX_3\.4\.(\d+)", names))) <= 24
