"""Overrides of a recipe for trainings of the tiny model."""

from __future__ import annotations

from pathlib import Path


def on_corpus(start: Path, corpus: Path, output: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    """Train the model of ``start`` on the records of ``corpus``, and log every step; ``settings`` win, and ``more``."""
    return [
        f"model.start={start}",
        f"data.json=[{corpus / 'pictures.json'}, {corpus / 'text.jsonl'}]",
        f"data.image_root={corpus / 'images'}",
        f"data.features={output.parent / 'features'}",
        "data.max_length=256",
        f"output={output}",
        "train.log_steps=1",
        *settings,
        *more,
    ]
