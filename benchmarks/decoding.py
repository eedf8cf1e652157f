"""``python -m benchmarks decoder``: backends that run one decoder on a CPU, side by side on the same weights.

Every backend is a process of its own; they take turns, so that what else the machine does hurts all of them. llama.cpp
is one of them where llama-cpp-python and gguf are installed; its weights are those of our packed decoder, number for
number (:mod:`mobillama_v.interop.gguf`). The roof is how fast decoding would be if it only read its weights: those that
no cache keeps at the measured speed of memory, the shared network's at the measured speed of as many bytes that are
read again and again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.decoder_worker import BACKENDS, FLOATS, LLAMA_CPP, NATIVE
from benchmarks.harness import OutputOption, finish, machine, times_as_fast
from mobillama_v.cli.bench import aligned, check_context, formatted, prompt_lengths, spread
from mobillama_v.errors import ConfigError

if TYPE_CHECKING:
    from mobillama_v.config import DecoderConfig

ROOT = Path(__file__).parent.parent
_BASE = "torch fp32"  # what the others are compared with
_RIVALS = {"native 4 bit": "q4_0", "native 8 bit": "q8_0"}


def bench_decoder(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A preset, whose weights are then random, or a model as in describe.")
    ] = "mobillama-0.5b",
    prompts: Annotated[str, typer.Option(help="Lengths of the prompts in tokens, separated by commas.")] = "64,640",
    new: Annotated[int, typer.Option(min=2, help="New tokens after each prompt.")] = 64,
    turns: Annotated[int, typer.Option(min=1, help="Times that every backend is measured.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Of each backend; 0: as many as there are processors.")] = 0,
    backends: Annotated[
        str,
        typer.Option(
            help="Which backends, all in one option and separated by commas: 'native 4 bit,torch fp32'. All by default."
        ),
    ] = "",
    output: OutputOption = None,
) -> None:
    """Time the native engine, torch, transformers and llama.cpp on the same decoder: speed, memory, and the roof."""
    from mobillama_v.backends.select import processors
    from mobillama_v.hub import find_model, read_spec
    from mobillama_v.presets import PRESETS

    lengths = prompt_lengths(prompts)
    spec = PRESETS[model].decoder if model in PRESETS else read_spec(find_model(model)).decoder
    absent = _absent(spec)
    chosen = _chosen(backends, absent)
    check_context(max(lengths) + new, spec.max_position_embeddings)
    count = threads or processors()
    chance = random.Random(0)
    asked = {length: [chance.randrange(3, spec.vocab_size) for _ in range(length)] for length in lengths}
    with tempfile.TemporaryDirectory() as work:
        write_weights(model, spec, Path(work), chosen)
        measured = measure(
            chosen, Path(work), asked, layers=spec.num_hidden_layers, new=new, turns=turns, threads=count
        )
    facts = {
        "bench": "decoder",
        "model": model,
        **machine(),
        "threads": count,
        "new_tokens": new,
        "turns": turns,
        "backends": summary(measured, new),
        "not_measured": {} if backends else absent,
    }
    facts["versus_llama_cpp"] = versus(facts["backends"])
    finish(facts, table(facts), output)


def llama_cpp_missing() -> str:
    """Why llama.cpp cannot be run here, and how to mend that; empty where it can."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if module not in sys.modules and find_spec(module) is None:
            return f"{package} is not installed (pip install {package})"
    return ""


def _absent(spec: DecoderConfig) -> dict[str, str]:
    """The backends that cannot be measured here, and why."""
    from mobillama_v.backends.native import library
    from mobillama_v.interop.gguf import refuse_type

    reasons = {name: library.missing() for name in NATIVE}
    for name, settings in LLAMA_CPP.items():
        reasons[name] = llama_cpp_missing()
        try:
            refuse_type(settings.kind, spec)
        except ConfigError as error:
            reasons[name] = reasons[name] or str(error).rstrip(".")
    return {name: reason for name, reason in reasons.items() if reason}


def _chosen(text: str, absent: dict[str, str]) -> list[str]:
    """The backends to measure: those that are named, or all that can be."""
    chosen = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in chosen:
        if name not in BACKENDS:
            raise ConfigError(f"there is no backend {name!r}; choose among {', '.join(BACKENDS)}.")
        if name in absent:
            raise ConfigError(f"{name} cannot be measured here: {absent[name]}.")
    return chosen or [name for name in BACKENDS if name not in absent]


def write_weights(model: str, spec: DecoderConfig, folder: Path, backends: Sequence[str]) -> None:
    """Write what the workers load."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from mobillama_v.backends.native.packed_format import write
    from mobillama_v.backends.native.torch_convert import pack
    from mobillama_v.interop.gguf import write_gguf
    from mobillama_v.presets import PRESETS

    decoder: nn.Module
    if model in PRESETS:
        from mobillama_v.hf.configuration import MobiLlamaConfig
        from mobillama_v.hf.modeling import MobiLlamaForCausalLM

        torch.manual_seed(0)
        made = MobiLlamaForCausalLM(MobiLlamaConfig(**dataclasses.asdict(spec)))
        decoder, head = made.model, made.lm_head
    else:
        from mobillama_v.loading import load

        network = load(model, device="cpu", engine="torch").network
        decoder, head = network.language_model, network.lm_head
    (folder / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)))
    state = {f"language_model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    save_file({**state, "lm_head.weight": head.weight.detach()}, folder / FLOATS)
    for bits in (NATIVE[name] for name in backends if name in NATIVE):
        (folder / str(bits)).mkdir()
        write(pack(decoder, head, spec, bits, search=False), folder / str(bits))
    for kind in dict.fromkeys(LLAMA_CPP[name].kind for name in backends if name in LLAMA_CPP):
        write_gguf(folder / f"{kind}.gguf", decoder, head, spec, kind=kind, search=False)


class Worker:
    """The process of a backend; it has loaded the model when this is made."""

    def __init__(self, backend: str, folder: Path, threads: int, capacity: int) -> None:
        command = [sys.executable, "-m", "benchmarks.decoder_worker", backend, str(folder), str(threads), str(capacity)]
        self.backend = backend
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.end()
            raise ConfigError(f"{self.backend} has ended before it was measured; what it said is above.")
        return json.loads(line)

    def ask(self, prompt: Sequence[int], new: int) -> dict[str, Any]:
        """One measurement."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is reported below
            self.process.stdin.write(json.dumps({"prompt": prompt, "new": new}) + "\n")
            self.process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """Stop the process."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def _workers(backends: Sequence[str], folder: Path, threads: int, capacity: int) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        started = []
        for name in backends:
            started.append(Worker(name, folder, threads, capacity))
            stack.callback(started[-1].end)
        yield started


def measure(
    backends: Sequence[str],
    folder: Path,
    prompts: dict[int, list[int]],
    *,
    layers: int,
    new: int,
    turns: int,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Let the backends take turns at prompts by length, after a warm-up; memory's speed is measured at every turn too.

    Returns:
        By backend its own facts, ``peak_rss_bytes``, and by length of the prompt ``seconds`` a turn and ``tokens``.
    """
    with _workers(backends, folder, threads, max(prompts) + new) as workers:
        found: dict[str, dict[str, Any]] = {
            worker.backend: worker.facts
            | {"peak_rss_bytes": 0, "seconds": {str(n): {"prefill": [], "decode": []} for n in prompts}, "tokens": {}}
            for worker in workers
        }
        for worker in workers:
            worker.ask(prompts[min(prompts)], 2)
        for _ in range(turns):
            for mine in found.values():
                if "streamed_bytes" in mine:
                    for name, size in (("memory", 1 << 29), ("cache", mine["cached_bytes"] // layers)):
                        mine.setdefault(f"{name}_bytes_per_second", []).append(read_speed(size, threads))
            for length, ids in prompts.items():
                for worker in workers:
                    answer, mine = worker.ask(ids, new), found[worker.backend]
                    for phase, seconds in mine["seconds"][str(length)].items():
                        seconds.append(answer[phase])
                    mine["tokens"][str(length)] = answer["tokens"]
                    mine["peak_rss_bytes"] = max(mine["peak_rss_bytes"], answer["peak_rss"])
    return found


def read_speed(size: int, threads: int) -> float:
    """Bytes a second at which `threads` read ``size`` bytes that they have read before, the best of several times."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numbers = torch.ones(max(size // 4, 1 << 10))
        times = []
        for _ in range(4 if size > 1 << 28 else 20):
            begin = time.perf_counter()
            numbers.sum()
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return 4 * len(numbers) / min(times)


def summary(measured: dict[str, dict[str, Any]], new: int) -> dict[str, dict[str, Any]]:
    """What was measured, with ``prompts``: speeds by length of the prompt, and the roof."""
    base = measured.get(_BASE)
    found: dict[str, dict[str, Any]] = {}
    for name, mine in measured.items():
        prompts: dict[str, Any] = {}
        for length, seconds in mine["seconds"].items():
            prompts[length] = {
                "prefill_tokens_per_second": spread([int(length) / each for each in seconds["prefill"]]),
                "decode_tokens_per_second": spread([(new - 1) / each for each in seconds["decode"]]),
            }
            if base:
                ratio = times_as_fast(seconds["decode"], base["seconds"][length]["decode"])
                prompts[length]["decode_times_as_fast_as_torch"] = ratio["median"]
                same = [a == b for a, b in zip(base["tokens"][length], mine["tokens"][length], strict=True)]
                prompts[length]["tokens_as_torch"] = same.index(False) if False in same else len(same)
        found[name] = {**mine, "prompts": prompts}
        if "streamed_bytes" in mine:
            memory, cache = (statistics.median(mine[f"{kind}_bytes_per_second"]) for kind in ("memory", "cache"))
            roof = 1 / (mine["streamed_bytes"] / memory + mine["cached_bytes"] / cache)
            shortest = prompts[min(prompts, key=int)]["decode_tokens_per_second"]["median"]
            found[name] |= {"roof_tokens_per_second": roof, "roof_reached": shortest / roof}
    return found


def versus(backends: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast as llama.cpp the native engine is at each number of bits, and the ratio of peak memory.

    llama.cpp is taken in its best setting, for each figure on its own: that of the least median. Speeds are compared
    turn by turn.
    """
    found: dict[str, Any] = {}
    for mine, kind in _RIVALS.items():
        theirs = [name for name in backends if name in LLAMA_CPP and LLAMA_CPP[name].kind == kind]
        if mine not in backends or not theirs:
            continue
        prompts: dict[str, Any] = {}
        for length, seconds in backends[mine]["seconds"].items():
            prompts[length] = {}
            for phase in ("prefill", "decode"):
                every = {name: backends[name]["seconds"][length][phase] for name in theirs}
                best = min(every, key=lambda name: statistics.median(every[name]))
                prompts[length][phase] = times_as_fast(seconds[phase], every[best]) | {"setting": best}
        least = min(theirs, key=lambda name: backends[name]["peak_rss_bytes"])
        memory = {"ratio": backends[mine]["peak_rss_bytes"] / backends[least]["peak_rss_bytes"], "setting": least}
        found[mine] = {"prompts": prompts, "peak_rss": memory}
    return found


def versus_lines(facts: dict[str, Any]) -> list[str]:
    """:func:`versus` as text."""
    lines = []
    for mine, found in facts.items():
        parts = [
            f"{words} {length} {formatted(each[phase], 2)}x"
            for length, each in found["prompts"].items()
            for phase, words in (("prefill", "prefill of"), ("decode", "decode after"))
        ]
        parts.append(f"peak memory {found['peak_rss']['ratio']:.2f}x")
        lines.append(f"{mine} against llama.cpp at its best: {', '.join(parts)}.")
    return lines


def table(facts: dict[str, Any]) -> str:
    """The measurement as text."""
    lengths = list(next(iter(facts["backends"].values()))["prompts"])
    rows = [["", "peak MB", "of the roof"]]
    for length in lengths:
        rows[0] += [f"prefill {length} tok/s", f"decode after {length} tok/s", "x torch"]
    for name, mine in facts["backends"].items():
        reached = f"{100 * mine['roof_reached']:.0f}%" if "roof_reached" in mine else "-"
        row = [name, f"{mine['peak_rss_bytes'] / 1e6:,.0f}", reached]
        for length in lengths:
            each = mine["prompts"][length]
            times = each.get("decode_times_as_fast_as_torch")
            row.append(f"{each['prefill_tokens_per_second']['median']:.1f}")
            row += [formatted(each["decode_tokens_per_second"]), f"{times:.1f}" if times else "-"]
        rows.append(row)
    lines = aligned(rows)
    lines.append(f"{facts['model']}, {facts['threads']} threads, medians of {facts['turns']} turns (least-most).")
    lines += versus_lines(facts["versus_llama_cpp"])
    for reason in dict.fromkeys(facts["not_measured"].values()):
        absent = [name for name, why in facts["not_measured"].items() if why == reason]
        lines.append(f"Not measured: {', '.join(absent)}: {reason}.")
    return "\n".join(lines)
