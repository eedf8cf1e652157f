"""The engine without torch: what it takes of memory, and that it is without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import FILE, read, write
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.backends.native.torch_convert import pack
from mobillama_v.config import DecoderConfig
from mobillama_v.model.decoder import Decoder

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")

SMALL = DecoderConfig(103, 40, 50, 2, 5, 5, 64)
WIDE = DecoderConfig(20_000, 512, 4096, 2, 8, 8, 64)  # 20 MB of embeddings, 3.5 of the shared network, 7 of the rest


def folder_of(spec: DecoderConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    head = torch.nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
    write(pack(Decoder(spec), head, spec, 4, search=False), folder)
    return folder


def resident(file: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_what_was_copied_or_is_hardly_read_takes_no_memory(tmp_path: Path) -> None:
    packed = read(folder_of(WIDE, tmp_path), WIDE)
    model = NativeModel(packed, threads=1)
    assert resident(tmp_path / FILE) < 1e6  # the shared network has been read, and is the library's own by now
    ids = np.random.default_rng(0).integers(5_000, 15_000, (2, 300))  # more than 2 MB from the next tensors
    assert np.array_equal(model.embed(ids), packed.tensors["embed_tokens"][ids].astype(np.float32))
    model.embed(ids)
    assert resident(tmp_path / FILE) < 1e6
    sequence = NativeSequence(model, 40)
    expected = model.forward([sequence], [model.embed(ids[0, :30])])
    rest = resident(tmp_path / FILE)
    assert rest < 1e7  # head and attention
    for token in ids[0, 30:40]:
        model.forward([sequence], [token[None]])
        assert resident(tmp_path / FILE) <= rest
    assert np.array_equal(model.forward([NativeSequence(model, 40)], [ids[0, :30]]), expected)


def test_tensors_at_odd_places_are_copied_and_stay(tmp_path: Path) -> None:
    """A header may have any length."""
    whole = (folder_of(SMALL, tmp_path) / FILE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    expected = {name: tensor.copy() for name, tensor in read(tmp_path, SMALL).tensors.items()}
    header = whole[8 : 8 + length] + b" "
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    packed = read(tmp_path, SMALL)
    model = NativeModel(packed, threads=1)
    for name, tensor in packed.tensors.items():
        assert tensor.flags.aligned and tensor.ctypes.data % 4 == 0
        packed.release_pages(name)
        assert np.array_equal(tensor, expected[name])
    assert np.isfinite(model.forward([NativeSequence(model, 8)], [np.array([1, 2, 3])])).all()


def test_what_lies_in_no_file_stays() -> None:
    torch.manual_seed(0)
    packed = pack(Decoder(SMALL), torch.nn.Linear(SMALL.hidden_size, SMALL.vocab_size, bias=False), SMALL, 8)
    expected = {name: tensor.copy() for name, tensor in packed.tensors.items()}
    NativeModel(packed, threads=1).embed(np.arange(9))
    assert all(np.array_equal(tensor, expected[name]) for name, tensor in packed.tensors.items())


def test_ids_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    model = NativeModel(read(folder_of(SMALL, tmp_path), SMALL), threads=1)
    for wrong in (-1, 103):
        with pytest.raises(IndexError, match=f"{wrong} is"):
            model.embed(np.array([3, wrong]))
    assert model.embed(np.zeros((2, 0), int)).shape == (2, 0, 40)


def test_it_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    folder_of(SMALL, tmp_path)
    code = f"""
import sys
sys.modules["torch"] = None  # whoever imports it fails
from pathlib import Path
import numpy as np
from mobillama_v.backends.native.packed_format import read
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.config import DecoderConfig
model = NativeModel(read(Path({str(tmp_path)!r}), DecoderConfig(103, 40, 50, 2, 5, 5, 64)), threads=1)
print(model.forward([NativeSequence(model, 8)], [model.embed(np.array([1, 2, 3]))]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "(1, 103)\n", done.stderr
