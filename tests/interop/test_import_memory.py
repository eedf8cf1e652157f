"""A checkpoint is imported in less memory than its files have: one of LLaVA's, a fiftieth of the 7B's size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reference_models import TEXT, VISION, add_tokenizer

IMPORT = """
import resource, sys
from pathlib import Path
from mobillama_v.interop import import_model as importing
importing.SHARD = 10 << 20  # of the shards what it is of the 7B's
for source in sys.argv[1:]:
    importing.import_model(source, Path(source).with_name(f"our-{Path(source).name}"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def write(folder: Path, shard: int, **text: int) -> int:
    """A checkpoint in shards of so many bytes; the largest's bytes, with the index."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT | text))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlavaForConditionalGeneration(config).state_dict().items()}
    config.save_pretrained(folder)
    add_tokenizer(folder)
    shards, sizes = [dict[str, torch.Tensor]()], [0]
    for name, shape in shapes.items():
        if sizes[-1] + 2 * shape.numel() > shard:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = torch.randn(shape).half()
        sizes[-1] += 2 * shape.numel()
    weights = {}
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / file)
        weights |= dict.fromkeys(tensors, file)
    index = json.dumps({"weight_map": weights})
    (folder / "model.safetensors.index.json").write_text(index)
    return max(sizes) + len(index)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say what a process had at most")
def test_the_largest_file_bounds_the_memory(tmp_path: Path) -> None:
    write(tmp_path / "small", 1 << 20)
    largest = write(tmp_path / "large", 100 << 20, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12)
    command = [sys.executable, "-c", IMPORT, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 1.3 * largest
