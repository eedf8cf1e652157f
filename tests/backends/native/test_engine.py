"""Generation by the native engine: streams that share passes, and prompts that begin alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decoders import PATHS, SHAPES, Plain, forward, meant, natives
from mobillama_v.backends.native import library
from mobillama_v.backends.native.engine import NativeEngine
from mobillama_v.backends.native.packed_format import Array
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.generate import Completion, Sampling, generate, stream

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")


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
    embeds = native.model.embed(ids.numpy())
    got = generate(native, Letters(), embeds, exists.numpy(), Sampling(max_new_tokens=50))
    assert [(each.ids, each.finish_reason) for each in got] == [(each.ids, each.finish_reason) for each in expected]
    assert len({tuple(each.ids) for each in got}) == 3
    long = generate(native, Letters(), embeds, exists.numpy(), Sampling(max_new_tokens=1000))
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
    prompts = [
        native.model.embed(torch.randint(3, spec.vocab_size, (1, length)).numpy()) for length in (5, 60, 21, 140)
    ]

    def begin(i: int) -> Iterator[tuple[list[str], list[Completion]]]:
        return stream(native, Letters(), prompts[i], np.ones(prompts[i].shape[:2]), settings[i])

    alone = [list(begin(i))[-1][1][0] for i in range(4)]
    assert len({tuple(each.ids) for each in alone}) == 4 and alone[0].finish_reason == "length"
    rows: list[int] = []
    original = native.model.forward

    def counted(sequences: Sequence[NativeSequence], inputs: Sequence[Array]) -> Array:
        rows.append(len(sequences) if len(inputs[0]) == 1 else 0)
        return original(sequences, inputs)

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
    prompt = native.model.embed(torch.randint(3, spec.vocab_size, (1, 9)).numpy())
    first, second = (stream(native, Letters(), prompt, np.ones((1, 9)), Sampling(5)) for _ in range(2))
    original = native.model.forward
    next(first), next(second)
    monkeypatch.setattr(native.model, "forward", lambda *args: second.close() or original(*args))
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
    original = NativeModel.forward

    def counted(self: NativeModel, sequences: list[NativeSequence], inputs: list[Array]) -> Array:
        run_positions.append(sum(map(len, inputs)))
        return original(self, sequences, inputs)

    def answers(engine: NativeEngine, rows: list[int]) -> Tensor:
        longest = max(len(prompts[i]) for i in rows)
        padded = torch.stack([nn.functional.pad(prompts[i], (0, 0, longest - len(prompts[i]), 0)) for i in rows])
        exists = torch.stack([torch.arange(longest) >= longest - len(prompts[i]) for i in rows]).long()
        decoding = engine.begin(len(rows), longest + 4)
        logits = [torch.from_numpy(decoding.prefill(padded.numpy(), exists.numpy()))]
        for step in range(4):
            decoding.push(tokens[rows, step].tolist())
            logits.append(torch.from_numpy(decoding.logits()))
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
    assert run_positions[0] == 1 + 3
    run_positions.clear()
    assert torch.equal(answers(plain, again), expected[again]) and run_positions[:2] == [49, 3]


def test_a_copy_that_cannot_be_is_refused() -> None:
    spec = SHAPES["shared"]
    model, other = natives(Plain(spec), 8), natives(Plain(spec), 8)
    source, empty = NativeSequence(model, 40), NativeSequence(model, 10)
    forward(model, [source], [torch.randn(20, 64)])
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
        forward(model, [empty], [torch.randn(1, 64)])
