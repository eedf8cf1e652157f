"""The Auto classes know the models, whichever package is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tiny import DECODER

CODE = """
{imports}
config = AutoConfig.for_model("mobillama", **{decoder!r})
model = AutoModelForCausalLM.from_config(config)
assert type(model).__name__ == "MobiLlamaForCausalLM", type(model)
model.save_pretrained({folder!r})
again = AutoModelForCausalLM.from_pretrained({folder!r})
assert type(again) is type(model) and again.config.spec == model.config.spec
from transformers import AutoModelForImageTextToText
from mobillama_v import MobiLlamaVConfig
assert MobiLlamaVConfig in AutoModelForImageTextToText._model_mapping
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import mobillama_v; from transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM; import mobillama_v",
    ],
)
def test_auto_classes(imports: str, tmp_path) -> None:
    code = CODE.format(imports=imports, decoder=DECODER, folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
