"""``mobillama-v bench``: how fast this machine runs a model's decoder, by each backend that can run it."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.cli.options import DeviceOption, ModelOption
from mobillama_v.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from mobillama_v.generate import Engine

BACKENDS = ("native", "numpy", "torch")
_MOVED = ("eval", "train")  # former sub-commands, which compare methods and measure no model
_RANDOM = 3  # the first token id that is not a special one


def bench(
    moved: Annotated[str | None, typer.Argument(hidden=True)] = None,
    model: ModelOption = "nano",
    device: DeviceOption = "cpu",
    backend: Annotated[
        str | None, typer.Option(help=f"Only this backend: {', '.join(BACKENDS)}. By default all that can run it.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="Lengths of the prompts in tokens, separated by commas.")] = "64,256",
    new: Annotated[int, typer.Option(min=2, help="New tokens after each prompt.")] = 32,
    turns: Annotated[int, typer.Option(min=1, help="Times that every backend is measured.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as the model would use.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure how many tokens a second this machine reads (prefill) and writes (decode) with a model.

    The prompts are random tokens. The backends take turns, and the table has medians with the least and the most.
    """
    if moved not in (None, "run", *_MOVED):
        raise ConfigError(f"bench takes no argument {moved!r}; name the model with --model.")
    if moved in _MOVED:
        raise ConfigError(
            f"`bench {moved}` is now `python -m benchmarks {moved}`, run from a checkout of the project; this command "
            "measures one model."
        )
    lengths = prompt_lengths(prompts)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    engines, absent = _engines(model, device, [backend] if backend else list(BACKENDS), threads)
    context = next(iter(engines.values())).spec.max_position_embeddings
    check_context(max(lengths) + new, context)
    seconds = measure(engines, lengths, new=new, turns=turns)
    facts = {
        "model": model,
        "new_tokens": new,
        "turns": turns,
        "backends": {
            name: {
                str(length): {
                    "prefill_tokens_per_second": spread([length / first for first, _ in pairs]),
                    "decode_tokens_per_second": spread([(new - 1) / rest for _, rest in pairs]),
                }
                for length, pairs in by_length.items()
            }
            for name, by_length in seconds.items()
        },
        "not_measured": absent,
    }
    print(json.dumps(facts) if as_json else "\n".join(_table(facts)))


def _engines(
    model: str, device: str, backends: Sequence[str], threads: int
) -> tuple[dict[str, Engine], dict[str, str]]:
    """The engines that run the model, by their titles, and why the other backends do not."""
    from mobillama_v.eval.evaluate import Model

    engines: dict[str, Engine] = {}
    absent: dict[str, str] = {}
    for name in backends:
        try:
            chosen = Model(model, device, name)
            chosen.plan.limit_threads()
            engine = chosen.assistant.engine
        except (ConfigError, MissingExtraError) as error:
            if len(backends) == 1:
                raise
            absent[name] = str(error)
            continue
        engines[engine.title] = engine
    if threads and "torch" in backends and "torch" not in absent:
        import torch

        torch.set_num_threads(threads)
    return engines, absent


def measure(
    engines: dict[str, Engine], lengths: Sequence[int], *, new: int, turns: int
) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """Seconds of the prompt and of the new tokens after the first, by engine and length, one pair a turn.

    Every turn has other prompts, since an engine may remember what it has read; a short one warms each engine up.
    """
    chance = random.Random(0)
    found: dict[str, dict[int, list[tuple[float, float]]]] = {
        name: {length: [] for length in lengths} for name in engines
    }
    for engine in engines.values():
        _time(engine, _ids(chance, min(lengths), engine), 2)
    for _ in range(turns):
        for length in lengths:
            for name, engine in engines.items():
                found[name][length].append(_time(engine, _ids(chance, length, engine), new))
    return found


def _ids(chance: random.Random, length: int, engine: Engine) -> list[int]:
    return [chance.randrange(_RANDOM, engine.spec.vocab_size) for _ in range(length)]


def _time(engine: Engine, ids: list[int], new: int) -> tuple[float, float]:
    from mobillama_v.generate import Prompt
    from mobillama_v.prompt import Encoded

    prompt = Encoded()
    prompt.add(ids)
    begin = time.perf_counter()
    sequences, logits = engine.prefill([Prompt(prompt)], new)
    token = int(logits.argmax())
    first = time.perf_counter()
    for _ in range(new - 1):
        token = int(engine.decode(sequences, [token]).argmax())
    return first - begin, time.perf_counter() - first


def _table(facts: dict[str, Any]) -> list[str]:
    """The measurement as text."""
    lengths = list(next(iter(facts["backends"].values())))
    rows = [["", *(f"{what} {length} tok/s" for length in lengths for what in ("prefill", "decode after"))]]
    for name, by_length in facts["backends"].items():
        phases = [(length, what) for length in lengths for what in ("prefill", "decode")]
        rows.append([name, *(formatted(by_length[length][f"{what}_tokens_per_second"]) for length, what in phases)])
    lines = [*aligned(rows), f"{facts['model']}, medians of {facts['turns']} turns (least-most)."]
    return lines + [f"Not measured: {name}: {reason}" for name, reason in facts["not_measured"].items()]


def prompt_lengths(text: str) -> list[int]:
    """The different numbers in a text such as ``64,640``.

    Raises:
        ConfigError: there is something else in it.
    """
    lengths = [int(each) if each.strip().isdecimal() else 0 for each in text.split(",")]
    if min(lengths) < 1:
        raise ConfigError(f"--prompts {text!r} is not a list of numbers such as 64,640.")
    return list(dict.fromkeys(lengths))


def check_context(tokens: int, context: int) -> None:
    """Refuse prompts with their new tokens that are longer than the model's context.

    Raises:
        ConfigError: they are.
    """
    if tokens > context:
        raise ConfigError(f"{tokens} tokens do not fit the model's context of {context}; choose shorter --prompts.")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def formatted(found: dict[str, float], digits: int = 1) -> str:
    """A :func:`spread` as text."""
    return f"{found['median']:,.{digits}f} ({found['least']:,.{digits}f}-{found['most']:,.{digits}f})"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, all others to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(wide[i]) if i else cell.ljust(wide[0]) for i, cell in enumerate(row)) for row in rows]
