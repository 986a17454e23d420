"""Settings for loading a model; importable without torch."""

from typing import Literal, get_args

from ..support.settings import Settings, option

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: tuple[str, ...] = get_args(Dtype)
PANEL = "Where to run"


class ModelSettings(Settings):
    """Device and data type of a model."""

    device: str | None = option(
        None,
        "device: cpu, cuda, cuda:1, mps, or auto to spread layers over all CUDA devices; default: CUDA if available",
        panel=PANEL,
    )
    dtype: Dtype = option("float32", "type of the weights: float32, bfloat16 or float16", panel=PANEL)
