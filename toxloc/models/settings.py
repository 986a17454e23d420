"""Settings for loading a model; importable without torch."""

from typing import Any, Literal, get_args

from ..support.settings import Settings, option

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: tuple[str, ...] = get_args(Dtype)
Quantization = Literal["torchao-int8", "bnb-8bit", "bnb-4bit"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
PANEL = "Where to run"


class ModelSettings(Settings):
    """How a model is loaded: its device, the type of its weights, and whether they stay on the disk."""

    device: str | None = option(
        None,
        "device: cpu, cuda, cuda:1, mps, or auto to spread layers over all CUDA devices; default: CUDA if available",
        panel=PANEL,
    )
    dtype: Dtype = option("float32", "type of the weights: float32, bfloat16 or float16", panel=PANEL)
    offload: bool = option(
        False, "keep the weights on the disk, so that the model may be larger than memory (on the CPU)", panel=PANEL
    )
    quantize: Quantization | None = option(
        None, f"quantize the weights while loading: {', '.join(QUANTIZATIONS)}; default: no", panel=PANEL
    )
    trust_remote_code: bool = option(
        False, "run the code that the model brings (auto_map in config.json); only for code that you trust", panel=PANEL
    )

    def loading(self) -> dict[str, Any]:
        """Return the arguments of `load_model`, by name."""
        return {name: getattr(self, name) for name in ModelSettings.model_fields}
