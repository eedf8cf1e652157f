"""``mobillama-v bench run``: ways of running one decoder on a CPU, side by side on the same weights.

Every way is a process of its own; they take turns, so that what else the machine does hurts all of them. llama.cpp is
one of them where llama-cpp-python is installed. The roof is
how fast decoding would be if it only read its weights: those that no cache keeps at the measured speed of memory, the
shared network's at the measured speed of as many bytes that are read again and again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.errors import ConfigError
from mobillama_v.eval.bench_llamacpp import SETTINGS
from mobillama_v.eval.bench_versus import versus, versus_lines
from mobillama_v.plots import pyplot, save

if TYPE_CHECKING:
    from mobillama_v.config import DecoderConfig

_BASE = "torch fp32"  # what the others are compared with


@dataclass
class Way:
    """What was measured of one way: facts, and by length of the prompt [tokens] seconds a turn."""

    facts: dict[str, Any]
    prefill: dict[int, list[float]] = field(default_factory=dict)
    decode: dict[int, list[float]] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    peak_rss: int = 0


def bench_run(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A preset, whose weights are then random, or a model as in describe.")
    ] = "mobillama-0.5b",
    prompts: Annotated[str, typer.Option(help="Lengths of the prompts in tokens, separated by commas.")] = "64,640",
    new: Annotated[int, typer.Option(min=2, help="New tokens after each prompt.")] = 64,
    turns: Annotated[int, typer.Option(min=1, help="Times that every way is measured.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Of each way; 0: as many as there are processors.")] = 0,
    ways: Annotated[
        str,
        typer.Option(
            help="Which ways, all in one option and separated by commas: 'native 4 bit,torch fp32'. All by default."
        ),
    ] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the measurement as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it, as PNG.")] = None,
) -> None:
    """Time the CPU engine, torch, transformers and llama.cpp on the same decoder: speed, memory, and the roof."""
    from mobillama_v.backends.select import processors
    from mobillama_v.eval.store import write_output
    from mobillama_v.hub import find_model, read_spec
    from mobillama_v.presets import PRESETS

    lengths = _lengths(prompts)
    spec = PRESETS[model].decoder if model in PRESETS else read_spec(find_model(model)).decoder
    absent = _absent(spec)
    chosen = _chosen(ways, absent)
    if plot:
        pyplot("--plot", "bench")
    longest = max(lengths) + new
    if longest > spec.max_position_embeddings:
        raise ConfigError(f"{longest} tokens do not fit the model's context of {spec.max_position_embeddings}.")
    count = threads or processors()
    with tempfile.TemporaryDirectory() as work:
        _write_weights(model, spec, Path(work), chosen)
        layers = spec.num_hidden_layers
        asked = _prompts(lengths, spec.vocab_size)
        measured = measure(chosen, Path(work), asked, layers=layers, new=new, turns=turns, threads=count)
    facts = as_dict(measured, model, new=new, threads=count)
    facts["not_measured"] = {} if ways else absent
    print(table(facts))
    if output:
        write_output(output, json.dumps(facts, indent=1) + "\n")
    if plot:
        draw(facts, plot)


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(each) for each in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"--prompts {text!r} is not a list of numbers such as 64,640.")
    return list(dict.fromkeys(lengths))


def _prompts(lengths: Sequence[int], vocab: int) -> dict[int, list[int]]:
    """Random ids by length."""
    import torch

    return {
        each: torch.randint(3, vocab, (each,), generator=torch.Generator().manual_seed(each)).tolist()
        for each in lengths
    }


def _absent(spec: DecoderConfig) -> dict[str, str]:
    """The ways that cannot be measured here, and why."""
    from mobillama_v.backends.native import library
    from mobillama_v.eval import bench_llamacpp, bench_native
    from mobillama_v.interop.gguf import refuse_type

    reasons = {way: library.missing() for way in bench_native.WAYS}
    for way, setting in bench_llamacpp.SETTINGS.items():
        reasons[way] = bench_llamacpp.missing()
        try:
            refuse_type(setting.kind, spec)
        except ConfigError as error:
            reasons[way] = reasons[way] or str(error).rstrip(".")
    return {way: reason for way, reason in reasons.items() if reason}


def _chosen(ways: str, absent: dict[str, str]) -> list[str]:
    """The ways to measure: those that are named, or all that can be."""
    from mobillama_v.eval import bench_native, bench_worker

    every = [*bench_native.WAYS, *bench_worker.WAYS, *SETTINGS]
    chosen = list(dict.fromkeys(way.strip() for way in ways.split(",") if way.strip()))
    for way in chosen:
        if way not in every:
            raise ConfigError(f"there is no way {way!r} to run a decoder; choose among {', '.join(every)}.")
        if way in absent:
            who = "llama.cpp" if way in SETTINGS else "the native engine"
            raise ConfigError(f"{who} is not here to be measured: {absent[way]}.")
    return chosen or [way for way in every if way not in absent]


def _write_weights(model: str, spec: DecoderConfig, folder: Path, ways: Sequence[str]) -> None:
    """Write what the workers load."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from mobillama_v.backends.native.packed_format import write
    from mobillama_v.backends.native.torch_convert import pack
    from mobillama_v.eval.bench_native import WAYS
    from mobillama_v.eval.bench_worker import FLOATS
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
    for bits in (WAYS[way] for way in ways if way in WAYS):
        (folder / str(bits)).mkdir()
        write(pack(decoder, head, spec, bits, search=False), folder / str(bits))
    for kind in dict.fromkeys(SETTINGS[way].kind for way in ways if way in SETTINGS):
        write_gguf(folder / f"{kind}.gguf", decoder, head, spec, kind=kind, search=False)


class _Worker:
    """A way's process."""

    def __init__(self, way: str, folder: Path, threads: int, capacity: int) -> None:
        from mobillama_v.eval.bench_native import WAYS

        theirs = way in SETTINGS
        kind = "llamacpp" if theirs else "native" if way in WAYS else "worker"
        command = [sys.executable, "-m", f"mobillama_v.eval.bench_{kind}", way, str(folder), str(threads)]
        command += [str(capacity)] if theirs else []
        self.way = way
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, Any] = {}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError(f"{self.way} has ended before it was measured; what it said is above.")
        return json.loads(line)

    def wait(self) -> None:
        """Until it has loaded the model."""
        self.facts = self._read()

    def ask(self, prompt: Sequence[int], new: int) -> dict[str, Any]:
        """One measurement."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is told below
            self._process.stdin.write(json.dumps({"prompt": prompt, "new": new}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _workers(ways: Sequence[str], folder: Path, threads: int, capacity: int) -> Iterator[list[_Worker]]:
    started: list[_Worker] = []
    try:
        for way in ways:
            started.append(_Worker(way, folder, threads, capacity))
            started[-1].wait()
        yield started
    finally:
        for worker in started:
            worker.end()


def measure(
    ways: Sequence[str], folder: Path, prompts: dict[int, list[int]], *, layers: int, new: int, turns: int, threads: int
) -> dict[str, Way]:
    """Let the ways take turns at prompts by length, after a warm-up; memory's speed is measured at every turn too."""
    with _workers(ways, folder, threads, max(prompts) + new) as workers:
        measured = {worker.way: Way(worker.facts) for worker in workers}
        for worker in workers:
            worker.ask(prompts[min(prompts)], 2)
        for _ in range(turns):
            for way in measured.values():
                if "streamed_bytes" in way.facts:
                    for name, size in (("memory", 1 << 29), ("cache", way.facts["cached_bytes"] // layers)):
                        way.facts.setdefault(f"{name}_bytes_per_second", []).append(read_speed(size, threads))
            for length, ids in prompts.items():
                for worker in workers:
                    answer, way = worker.ask(ids, new), measured[worker.way]
                    way.prefill.setdefault(length, []).append(answer["prefill"])
                    way.decode.setdefault(length, []).append(answer["decode"])
                    way.tokens[length] = answer["tokens"]
                    way.peak_rss = max(way.peak_rss, answer["peak_rss"])
    return measured


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


def as_dict(measured: dict[str, Way], model: str, *, new: int, threads: int) -> dict[str, Any]:
    """The measurement with what it was made on."""
    import torch

    base = measured.get(_BASE)
    found: dict[str, Any] = {}
    for name, way in measured.items():
        lengths = list(way.prefill)
        each: dict[str, Any] = dict(way.facts) | {"peak_rss_bytes": way.peak_rss, "seconds": {}, "prompts": {}}
        for length in lengths:
            each["seconds"][str(length)] = {"prefill": way.prefill[length], "decode": way.decode[length]}
            rates = [(new - 1) / seconds for seconds in way.decode[length]]
            summary: dict[str, Any] = {
                "first_token_seconds": statistics.median(way.prefill[length]),
                "prefill_tokens_per_second": length / statistics.median(way.prefill[length]),
                "decode_tokens_per_second": statistics.median(rates),
                "decode_range": [min(rates), max(rates)],
            }
            if base:
                pairs = zip(base.decode[length], way.decode[length], strict=True)
                summary["decode_times_as_fast_as_torch"] = statistics.median(a / b for a, b in pairs)
                same = [a == b for a, b in zip(base.tokens[length], way.tokens[length], strict=True)]
                summary["tokens_as_torch"] = same.index(False) if False in same else len(same)
            each["prompts"][str(length)] = summary
        if "streamed_bytes" in way.facts:
            memory, cache = (statistics.median(way.facts[f"{kind}_bytes_per_second"]) for kind in ("memory", "cache"))
            roof = 1 / (way.facts["streamed_bytes"] / memory + way.facts["cached_bytes"] / cache)
            each["roof_tokens_per_second"] = roof
            each["roof_reached"] = each["prompts"][str(min(lengths))]["decode_tokens_per_second"] / roof
        found[name] = each
    return {
        "bench": "run",
        "model": model,
        "threads": threads,
        "new_tokens": new,
        "turns": len(next(iter(next(iter(measured.values())).decode.values()))),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "ways": found,
        "versus_llama_cpp": versus(found),
    }


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, all others to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(wide[i]) if i else cell.ljust(wide[0]) for i, cell in enumerate(row)) for row in rows]


def table(facts: dict[str, Any]) -> str:
    """The measurement as text; medians over the turns."""
    lengths = list(next(iter(facts["ways"].values()))["prompts"])
    rows = [["", "peak MB", "of the roof"]]
    for length in lengths:
        rows[0] += [f"prefill {length} tok/s", f"decode after {length} tok/s", "x torch"]
    for name, way in facts["ways"].items():
        reached = f"{100 * way['roof_reached']:.0f}%" if "roof_reached" in way else "-"
        row = [name, f"{way['peak_rss_bytes'] / 1e6:,.0f}", reached]
        for length in lengths:
            each = way["prompts"][length]
            low, high = each["decode_range"]
            times = each.get("decode_times_as_fast_as_torch")
            row.append(f"{each['prefill_tokens_per_second']:.1f}")
            row.append(f"{each['decode_tokens_per_second']:.1f} ({low:.1f}-{high:.1f})")
            row.append(f"{times:.1f}" if times else "-")
        rows.append(row)
    lines = aligned(rows)
    lines.append(f"{facts['model']}, {facts['threads']} threads, medians of {facts['turns']} turns (range).")
    lines += versus_lines(facts["versus_llama_cpp"])
    for reason in dict.fromkeys(facts["not_measured"].values()):
        absent = [way for way, why in facts["not_measured"].items() if why == reason]
        lines.append(f"Not measured: {', '.join(absent)}: {reason}.")
    return "\n".join(lines)


def draw(facts: dict[str, Any], path: Path) -> None:
    """Bars of decoding speed for every prompt length, with the range over the turns and the roofs.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the file cannot be written.
    """
    plot = pyplot("--plot", "bench")
    names = list(facts["ways"])
    lengths = list(facts["ways"][names[0]]["prompts"])
    figure, axes = plot.subplots(figsize=(8, 0.9 + 0.6 * len(names)), layout="constrained")
    height = 0.8 / len(lengths)
    for i, length in enumerate(lengths):
        each = [facts["ways"][name]["prompts"][length] for name in names]
        rates = [one["decode_tokens_per_second"] for one in each]
        spread = [
            [rate - one["decode_range"][0] for rate, one in zip(rates, each, strict=True)],
            [one["decode_range"][1] - rate for rate, one in zip(rates, each, strict=True)],
        ]
        at = [n + (i - (len(lengths) - 1) / 2) * height for n in range(len(names))]
        bars = axes.barh(at, rates, height * 0.9, xerr=spread, label=f"after {length} tokens", error_kw={"lw": 1})
        axes.bar_label(bars, fmt="%.1f", padding=4)
    roofs = {n: way["roof_tokens_per_second"] for n, way in enumerate(facts["ways"].values()) if "roof_reached" in way}
    if roofs:
        ends = [n - 0.42 for n in roofs], [n + 0.42 for n in roofs]
        axes.vlines(list(roofs.values()), *ends, color="black", lw=1.5, label="roof")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"decoded tokens a second, {facts['model']}, {facts['threads']} threads")
    axes.legend(loc="best")
    save(figure, path)
