"""Packing, and the file that holds it: equal after writing and reading, and refused with a sentence where damaged."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import FILE, layout, read, tiles_shape, write
from mobillama_v.backends.native.tiles import pack_matrix, unpack_matrix
from mobillama_v.backends.native.torch_convert import pack, unpack
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.model.decoder import Decoder

SPEC = DecoderConfig(103, 40, 50, 2, 5, 5, 64)
OWN = DecoderConfig(64, 96, 96, 2, 6, 2, 64, ffn_sharing="none", qkv_bias=True)


def packed(spec: DecoderConfig = SPEC, bits: int = 4):
    torch.manual_seed(0)
    return pack(Decoder(spec), torch.nn.Linear(spec.hidden_size, spec.vocab_size, bias=False), spec, bits)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 100), bits=st.sampled_from([4, 8, 16]), seed=st.integers(0, 99))
def test_a_weight_is_off_by_half_a_step_at_most(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** float(torch.randn(1, generator=generator))
    tiles = pack_matrix(weight, bits, search=False)
    assert tiles.shape == tiles_shape(rows, columns, bits)
    back = unpack_matrix(tiles, bits, rows, columns)
    padded = torch.nn.functional.pad(weight, (0, -columns % 32)).unflatten(-1, (-1, 32))
    largest = padded.abs().amax(-1, keepdim=True).expand(padded.shape).flatten(-2)[:, :columns]
    # A code is half a step off, or a whole one where 4 bits lack the 8 opposite to -8; an fp16 scale is off by 2^-11 of
    # itself, and where it is subnormal by 2^-25, which the code multiplies.
    step, code = {4: (1 / 8, 8), 8: (0.51 / 127, 127), 16: (2.0**-11, 1)}[bits]
    assert bool(((back - weight).abs() <= largest * (step + 2.0**-10) + code * 2.0**-25).all())


def test_searching_for_scales_never_hurts() -> None:
    weight = torch.randn(64, 256)
    errors = [
        (unpack_matrix(pack_matrix(weight, 4, search=search), 4, 64, 256) - weight).pow(2).sum()
        for search in (False, True)
    ]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_packing_twice_changes_nothing(bits: int) -> None:
    weight = unpack_matrix(pack_matrix(torch.randn(40, 70), bits), bits, 40, 70)
    assert torch.equal(unpack_matrix(pack_matrix(weight, bits), bits, 40, 70), weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weight = torch.randn(20, 40)
    weight[17, 3] = value
    for bits in (4, 16):
        with pytest.raises(CheckpointError, match="lm_head holds weights that are not finite, or too large"):
            pack_matrix(weight, bits, name="lm_head")
    decoder = Decoder(SPEC)
    decoder.embed_tokens.weight.data[17, 3] = value
    with pytest.raises(CheckpointError, match="embed_tokens holds weights that are not finite, or too large"):
        pack(decoder, torch.nn.Linear(SPEC.hidden_size, SPEC.vocab_size, bias=False), SPEC, 8)


@pytest.mark.parametrize("spec", [SPEC, OWN])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_written_read_and_unpacked(spec: DecoderConfig, bits: int, tmp_path: Path) -> None:
    made = packed(spec, bits)
    write(made, tmp_path)
    back = read(tmp_path, spec)
    assert back.bits == bits and list(back.tensors) == list(made.tensors) == list(layout(spec, bits))
    assert all(np.array_equal(made.tensors[name], tensor) for name, tensor in back.tensors.items())
    state, head = unpack(back)
    decoder = Decoder(spec)
    decoder.load_state_dict(state)  # strict
    assert head.shape == (spec.vocab_size, spec.hidden_size)
    torch.manual_seed(0)
    for name, original in Decoder(spec).state_dict().items():
        assert (state[name] - original).abs().max() <= original.abs().max() * {4: 0.23, 8: 0.005, 16: 0.001}[bits]


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    write(packed(), tmp_path)
    with pytest.raises(CheckpointError, match=r"embed_tokens is F16 \[103, 40\] and must be F16 \[96, 40\]"):
        read(tmp_path, DecoderConfig(96, 40, 50, 2, 5, 5, 64))
    with pytest.raises(CheckpointError, match=r"lacks layers\.2\.qkv"):
        read(tmp_path, DecoderConfig(103, 40, 50, 3, 5, 5, 64))
    with pytest.raises(CheckpointError, match=r"has unknown layers\.1\.attention_norm"):
        read(tmp_path, DecoderConfig(103, 40, 50, 1, 5, 5, 64))
    tensors = load_file(tmp_path / FILE)
    metadata = {"format": "mobillama_v.packed", "version": "1", "bits": "4"}
    for wrong in ({}, metadata | {"version": "2"}, metadata | {"format": "pt"}):
        save_file(tensors, tmp_path / FILE, metadata=wrong)
        with pytest.raises(CheckpointError, match="not a packed model that this version reads"):
            read(tmp_path, SPEC)
    for bits in ("5", "", "8 "):
        save_file(tensors, tmp_path / FILE, metadata=metadata | {"bits": bits})
        with pytest.raises(CheckpointError, match="does not say that its weights have 4, 8 or 16 bits"):
            read(tmp_path, SPEC)
    save_file(tensors, tmp_path / FILE, metadata=metadata | {"bits": "8"})
    with pytest.raises(CheckpointError, match="mis-shaped tensors"):
        read(tmp_path, SPEC)
    tensors["norm"][3] = float("nan")
    save_file(tensors, tmp_path / FILE, metadata=metadata)
    with pytest.raises(CheckpointError, match="norm holds numbers that are not finite"):
        read(tmp_path, SPEC)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    write(packed(), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            read(tmp_path, SPEC)


@pytest.mark.skipif(bool(library.missing()), reason="no native library")
def test_damaged_files_are_refused_or_run(tmp_path: Path) -> None:
    """300 files with changed bytes or headers: a sentence, or a model that answers (with whatever numbers it holds)."""
    from mobillama_v.backends.native.runtime import NativeModel, NativeSequence

    write(packed(), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    entries = json.loads(whole[8 : 8 + header])
    chance = random.Random(0)
    refused = ran = 0
    for turn in range(300):
        data = bytearray(whole)
        if turn % 3 == 0:  # offsets, shapes and types of a header that is still JSON
            changed = json.loads(json.dumps(entries))
            entry = changed[chance.choice([name for name in changed if name != "__metadata__"])]
            what = chance.choice(["begin", "end", "shape", "dtype", "drop"])
            if what == "dtype":
                entry["dtype"] = chance.choice(["F16", "F32", "U8", "I64"])
            elif what == "shape":
                entry["shape"] = [chance.choice([0, 1, 2, 16, 2**40]) for _ in entry["shape"]]
            elif what == "drop":
                del changed[next(name for name, each in changed.items() if each is entry)]
            else:
                entry["data_offsets"][what == "end"] += chance.choice([-1, 1, 32, 2**40])
            text = json.dumps(changed).encode()
            data = bytearray(struct.pack("<Q", len(text)) + text) + data[8 + header :]
        else:
            begin, end = (0, 8 + header) if turn % 3 == 1 else (8 + header, len(data))
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(begin, end)] = chance.randrange(256)
        (tmp_path / FILE).write_bytes(data)
        try:
            model = NativeModel(read(tmp_path, SPEC), threads=1)
        except CheckpointError:
            refused += 1
            continue
        model.forward([NativeSequence(model, 8)], [np.array([1, 2, 3])])
        ran += 1
    assert refused > 100 and ran > 50
