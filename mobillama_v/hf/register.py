"""Make transformers' Auto classes and PEFT know the models, without importing transformers before its user does.

transformers costs seconds of start-up that the command line does not have, so its registries are filled at the moment
their modules are imported, whichever of the two packages comes first.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader


def _configurations(module: Any) -> None:
    from mobillama_v.hf.configuration import MobiLlamaConfig, MobiLlamaVConfig

    module.AutoConfig.register("mobillama", MobiLlamaConfig, exist_ok=True)
    module.AutoConfig.register("mobillama_v", MobiLlamaVConfig, exist_ok=True)


def _models(module: Any) -> None:
    from mobillama_v.hf.configuration import MobiLlamaConfig, MobiLlamaVConfig
    from mobillama_v.hf.modeling import MobiLlamaForCausalLM, MobiLlamaVForConditionalGeneration

    module.AutoModelForCausalLM.register(MobiLlamaConfig, MobiLlamaForCausalLM, exist_ok=True)
    # Without pictures a whole model is a language model: lm-eval's `hf` takes its folder.
    module.AutoModelForCausalLM.register(MobiLlamaVConfig, MobiLlamaVForConditionalGeneration, exist_ok=True)
    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):  # the second is transformers 5's
        if hasattr(module, name):
            getattr(module, name).register(MobiLlamaVConfig, MobiLlamaVForConditionalGeneration, exist_ok=True)


def _image_processors(module: Any) -> None:
    from mobillama_v.hf.configuration import MobiLlamaVConfig
    from mobillama_v.hf.image_processing import MobiLlamaVImageProcessor

    # It works with Pillow whatever else is installed; transformers looks for the two backends that it knows.
    classes = dict.fromkeys(("pil", "torchvision"), MobiLlamaVImageProcessor)
    module.AutoImageProcessor.register(MobiLlamaVConfig, image_processor_classes=classes, exist_ok=True)


def _processors(module: Any) -> None:
    from mobillama_v.hf.configuration import MobiLlamaVConfig
    from mobillama_v.hf.processing import MobiLlamaVProcessor

    module.AutoProcessor.register(MobiLlamaVConfig, MobiLlamaVProcessor, exist_ok=True)


def _adapters(module: Any) -> None:
    """What PEFT adapts where a user names no modules: every layer of the decoder, and nothing that goes unused."""
    layers = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    for model_type in ("mobillama", "mobillama_v"):
        module.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type] = layers


_AUTO = "transformers.models.auto."
_FILLERS: dict[str, Callable[[Any], None]] = {
    f"{_AUTO}configuration_auto": _configurations,
    f"{_AUTO}modeling_auto": _models,
    f"{_AUTO}image_processing_auto": _image_processors,
    f"{_AUTO}processing_auto": _processors,
    "peft.utils.constants": _adapters,
}


# No base classes: `importlib.abc` imports ten modules for them, which takes longer than all that these two do.
class _Loader:
    """Runs a module as its own loader would, then fills its registry."""

    def __init__(self, loader: Loader, fill: Callable[[Any], None]) -> None:
        self._loader, self._fill = loader, fill

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._fill(module)


class _Finder:
    """Finds the Auto modules as usual and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _FILLERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Loader(spec.loader, _FILLERS[fullname]))
        return spec


def register() -> None:
    """Register now where transformers' Auto modules are already imported, else when they will be."""
    for name, fill in _FILLERS.items():
        if name in sys.modules:
            fill(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
