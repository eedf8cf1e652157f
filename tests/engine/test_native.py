"""The native decoder: every kernel path against the torch decoder, and itself in other steps and with other threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from mobillama_v.decoder import Decoder
from mobillama_v.engine import library
from mobillama_v.engine.files import pack, unpack
from mobillama_v.engine.native import NativeEngine, NativeModel, NativeSequence
from mobillama_v.generation import Completion, Sampling, TorchEngine, generate, stream
from mobillama_v.specs import DecoderSpec

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")

# Widths that are no multiple of a tile, heads that share keys, and a feed-forward network per layer are among them.
SHAPES = {
    "shared": DecoderSpec(97, 64, 176, 3, 4, 4, 300),
    "ragged": DecoderSpec(103, 40, 50, 2, 5, 5, 300),
    "grouped": DecoderSpec(64, 96, 96, 2, 6, 2, 300),
    "own": DecoderSpec(97, 64, 80, 3, 2, 2, 300, ffn_sharing="none"),
}
PATHS = [] if library.missing() else library.paths()


class Plain(nn.Module):
    """A decoder and its head, as generation wants them."""

    def __init__(self, spec: DecoderSpec, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.language_model, self.lm_head = Decoder(spec), nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                nn.init.normal_(parameter, std=1.0 if "embed" in name else 1.5 / spec.hidden_size**0.5)
        self.eval().requires_grad_(False)

    def logits(self, embeds: Tensor, cache: HalfCache | None = None) -> Tensor:
        positions = torch.arange(embeds.shape[0])[None]
        return self.lm_head(self.language_model(embeds[None], position_ids=positions, cache=cache))[0]


class HalfCache:
    """Rounds keys and values to fp16, as the engine keeps them."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        return keys.half().float(), values.half().float()


def quantised_inputs(model: nn.Module) -> None:
    """Let every matrix take what the engine's 4-bit and 8-bit matrices take: 8-bit blocks of 32."""

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0]
        padded = nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
        scale = padded.abs().amax(-1, keepdim=True) / 127
        rounded = (padded / scale.clamp(min=1e-30)).round() * scale
        return (rounded.flatten(-2)[..., : x.shape[-1]],)

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(hook)


def natives(model: Plain, bits: int, *, threads: int = 1, path: str = "auto") -> NativeModel:
    spec = model.language_model.spec
    return NativeModel(pack(model.language_model, model.lm_head, spec, bits), threads=threads, path=path)


def meant(model: Plain, bits: int) -> Plain:
    """The torch model with the numbers that the packed one means."""
    spec = model.language_model.spec
    out = Plain(spec)
    state, head = unpack(pack(model.language_model, model.lm_head, spec, bits))
    out.language_model.load_state_dict(state)
    out.lm_head.weight.copy_(head)
    return out


def run(model: NativeModel, embeds: Tensor, steps: list[int], capacity: int = 300) -> Tensor:
    """Logits after each of several pieces of a prompt."""
    sequence = NativeSequence(model, capacity)
    return torch.cat([model.forward([sequence], [piece]) for piece in embeds.split(steps)])


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
        quantised_inputs(model)
    expected = model.logits(embeds, HalfCache())
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
        alone.append([model.forward([sequence], [prompt])[0]])
        alone[-1] += [model.forward([sequence], [row[i : i + 1]])[0] for i in range(6)]
    sequences = [NativeSequence(model, 200) for _ in prompts]
    together = [model.forward(sequences, prompts)]
    together += [model.forward(sequences, list(tokens[:, i : i + 1])) for i in range(6)]
    for i, mine in enumerate(alone):
        assert all(torch.equal(a, b[i]) for a, b in zip(mine, together, strict=True))


def test_many_sequences_cross_a_chunk() -> None:
    model = natives(Plain(SHAPES["shared"]), 8, threads=2)
    prompts = [torch.randn(1 + i % 3, 64) for i in range(200)]
    together = model.forward([NativeSequence(model, 4) for _ in prompts], prompts)
    for i in (0, 63, 64, 127, 199):
        assert torch.equal(model.forward([NativeSequence(model, 4)], [prompts[i]])[0], together[i])


def test_tokens_are_their_embeddings() -> None:
    spec = SHAPES["shared"]
    model = natives(Plain(spec), 8)
    ids = torch.randint(0, spec.vocab_size, (20,))
    engine = NativeEngine(model)
    first, second = (NativeSequence(model, 20) for _ in range(2))
    assert torch.equal(model.forward([first], [ids]), model.forward([second], [engine.embed(ids)]))


class Letters:
    eos_id = 2

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(33 + i) for i in ids)


def test_generation_is_that_of_torch() -> None:
    """With padding, in a batch, to the end of the context; at 16 bits no token differs."""
    spec = SHAPES["shared"]
    model = meant(Plain(spec, seed=5), 16)
    native = NativeEngine(natives(model, 16))
    ids = torch.randint(3, spec.vocab_size, (3, 40))
    exists = torch.stack([torch.arange(40) >= 40 - n for n in (40, 7, 22)]).long()
    torchs = TorchEngine(model)
    expected = generate(torchs, Letters(), torchs.embed(ids), exists, Sampling(max_new_tokens=50))
    got = generate(native, Letters(), native.embed(ids), exists, Sampling(max_new_tokens=50))
    assert [(each.ids, each.finish_reason) for each in got] == [(each.ids, each.finish_reason) for each in expected]
    assert len({tuple(each.ids) for each in got}) == 3
    long = generate(native, Letters(), native.embed(ids), exists, Sampling(max_new_tokens=1000))
    assert max(len(each.ids) for each in long) <= 260


def test_streams_in_turns_run_together_and_answer_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unlike lengths and settings; one comes later, one ends first, one is broken off and costs no more."""
    spec = SHAPES["shared"]
    native = NativeEngine(natives(meant(Plain(spec, seed=5), 16), 16))
    settings = [
        Sampling(12),
        Sampling(30, temperature=1.5, seed=4),
        Sampling(30, temperature=0.7, top_p=0.8, seed=5),
        Sampling(30),
    ]
    prompts = [native.embed(torch.randint(3, spec.vocab_size, (1, length))) for length in (5, 60, 21, 140)]

    def begin(i: int) -> Iterator[tuple[list[str], list[Completion]]]:
        return stream(native, Letters(), prompts[i], torch.ones(prompts[i].shape[:2]), settings[i])

    alone = [list(begin(i))[-1][1][0] for i in range(4)]
    assert len({tuple(each.ids) for each in alone}) == 4 and alone[0].finish_reason == "length"
    rows: list[int] = []
    forward = native.model.forward

    def counted(sequences: Sequence[NativeSequence], inputs: Sequence[Tensor]) -> Tensor:
        rows.append(len(sequences) if len(inputs[0]) == 1 else 0)
        return forward(sequences, inputs)

    monkeypatch.setattr(native.model, "forward", counted)
    running, found, broken = {i: begin(i) for i in (0, 1, 2)}, {}, None
    for turn in range(60):
        if turn == 4:
            running[3] = begin(3)
        if turn == 8:
            broken = found.pop(2)
            running.pop(2).close()
        for i, answer in list(running.items()):
            step = next(answer, None)
            if step is None:
                del running[i]
            else:
                found[i] = step[1][0]
    assert not running
    assert [found[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    assert broken is not None and broken.ids == alone[2].ids[: len(broken.ids)] and len(broken.ids) == 8
    # Prompts run alone (0); then three rows, four with the newcomer, three without the one that was broken off.
    assert rows[:12] == [0, 0, 0, 3, 3, 3, 3, 0, 4, 4, 4, 3], rows
    assert sum(rows) == sum(len(each.ids) + (each.finish_reason == "stop") - 1 for each in found.values()) + 7, rows


def test_a_stream_that_is_collected_during_a_pass_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collection of garbage may close it anywhere, also in the thread that runs the pass."""
    spec = SHAPES["shared"]
    native = NativeEngine(natives(Plain(spec), 16))
    prompt = native.embed(torch.randint(3, spec.vocab_size, (1, 9)))
    first, second = (stream(native, Letters(), prompt, torch.ones(1, 9), Sampling(5)) for _ in range(2))
    forward = native.model.forward
    next(first), next(second)
    monkeypatch.setattr(native.model, "forward", lambda *args: second.close() or forward(*args))
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(len(list(first))), daemon=True)
    thread.start()
    thread.join(60)
    assert ended == [4]


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("path", PATHS)
def test_what_prompts_have_in_common_is_run_once(bits: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures with questions after one sentence, in a batch and after it: each the same bits as alone."""
    model = natives(Plain(SHAPES["grouped"]), bits, threads=2, path=path)
    sentence, red, blue = (torch.randn(length, 96) for length in (19, 21, 21))
    prompts = [torch.cat((sentence, picture, torch.randn(n, 96))) for picture in (red, blue) for n in (3, 1, 9)]
    prompts.append(torch.randn(30, 96))
    tokens = torch.randint(0, 64, (len(prompts), 4))
    run_positions: list[int] = []
    forward = NativeModel.forward

    def counted(self: NativeModel, sequences: list[NativeSequence], inputs: list[Tensor]) -> Tensor:
        run_positions.append(sum(map(len, inputs)))
        return forward(self, sequences, inputs)

    def answers(engine: NativeEngine, rows: list[int]) -> Tensor:
        longest = max(len(prompts[i]) for i in rows)
        padded = torch.stack([nn.functional.pad(prompts[i], (0, 0, longest - len(prompts[i]), 0)) for i in rows])
        exists = torch.stack([torch.arange(longest) >= longest - len(prompts[i]) for i in rows]).long()
        decoding = engine.begin(len(rows), longest + 4)
        logits = [decoding.prefill(padded, exists)]
        for step in range(4):
            decoding.push(tokens[rows, step])
            logits.append(decoding.logits())
        return torch.stack(logits, dim=1)

    plain, keeping = NativeEngine(model), NativeEngine(model, keep=2)  # a batch shares in either
    every = list(range(len(prompts)))
    expected = torch.cat([answers(plain, [i]) for i in every])
    monkeypatch.setattr(NativeModel, "forward", counted)
    assert torch.equal(answers(keeping, every), expected)
    assert sum(run_positions[:-4]) == (19 + 21 + 3) + 30 + (1 + 9) + (21 + 3) + (1 + 9)  # what is new to each
    run_positions.clear()
    again = [5, 3]  # the batch's last prompts were kept, and one of them ends with this question
    assert torch.equal(answers(keeping, again), expected[again])
    assert run_positions[0] + run_positions[1] <= 1 + 3
    run_positions.clear()
    assert torch.equal(answers(plain, again), expected[again]) and run_positions[:2] == [49, 3]


def test_a_copy_that_cannot_be_is_refused() -> None:
    spec = SHAPES["shared"]
    model, other = natives(Plain(spec), 8), natives(Plain(spec), 8)
    source, empty = NativeSequence(model, 40), NativeSequence(model, 10)
    model.forward([source], [torch.randn(20, 64)])
    for target, length, message in (
        (empty, 21, "there are not 21 positions"),
        (empty, 11, "there are not 11 positions, or no room"),
        (NativeSequence(other, 40), 5, "a sequence of another model"),
        (source, 5, "only an empty sequence"),
    ):
        with pytest.raises(RuntimeError, match=message):
            target.copy(source, length)
    empty.copy(source, 10)
    with pytest.raises(RuntimeError, match="room for 0 more"):
        model.forward([empty], [torch.randn(1, 64)])


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
        model.forward([sequence], [torch.randn(11, 64)])
    with pytest.raises(RuntimeError, match="token 97 is not in a vocabulary of 97"):
        model.forward([sequence], [torch.tensor([97])])
    with pytest.raises(RuntimeError, match="token -1 is not"):
        model.forward([sequence], [torch.tensor([-1])])
    with pytest.raises(RuntimeError, match="given twice"):
        model.forward([sequence, sequence], [prompt[:1], prompt[:1]])
    with pytest.raises(RuntimeError, match="another model"):
        model.forward([NativeSequence(other, 10)], [prompt])
    with pytest.raises(RuntimeError, match="was given 0"):
        model.forward([sequence], [prompt[:0]])
    with pytest.raises(ValueError, match="32 wide and the model 64"):
        model.forward([sequence], [torch.randn(2, 32)])
    with pytest.raises(RuntimeError, match="context of 300"):
        NativeSequence(model, 301)
    assert torch.equal(model.forward([sequence], [prompt])[0], run(model, prompt, [6])[0])


def test_a_head_of_odd_width_is_not_for_it() -> None:
    spec = DecoderSpec(97, 48, 64, 2, 4, 4, 64)
    with pytest.raises(RuntimeError, match="refuses this model: the width of a head must be a multiple of 8"):
        natives(Plain(spec), 8)


def test_traffic_counts_the_shared_network_once_a_layer() -> None:
    spec = SHAPES["shared"]  # matrices padded to multiples of 16 and 32; 544 bytes for 512 weights
    streamed, cached = natives(Plain(spec), 8).traffic
    assert streamed == (112 * 64 + 3 * 4 * 64 * 64) * 544 // 512
    assert cached == 3 * 3 * 64 * 192 * 544 // 512


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_forked_process_can_go_on() -> None:
    code = """
import os, sys, torch
from mobillama_v.decoder import Decoder
from mobillama_v.engine.files import pack
from mobillama_v.engine.native import NativeModel, NativeSequence
from mobillama_v.specs import DecoderSpec
spec = DecoderSpec(97, 64, 176, 3, 4, 4, 300)
model = NativeModel(pack(Decoder(spec), torch.nn.Linear(64, 97, bias=False), spec, 8), threads=2)
prompt = torch.randn(5, 64)
expected = model.forward([NativeSequence(model, 9)], [prompt])
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(model.forward([NativeSequence(model, 9)], [prompt]), expected) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0
