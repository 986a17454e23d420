"""Settings of loading a model; importable without torch."""

from typing import Literal, get_args

from ..support.settings import Settings, option

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: tuple[str, ...] = get_args(Dtype)
PANEL = "Where to run"


class ModelSettings(Settings):
    """Where a model runs, and in which type."""

    device: str | None = option(
        None,
        "device: cpu, cuda, cuda:1, mps, or auto for layers over all CUDA devices; default: CUDA where there is one",
        panel=PANEL,
    )
    dtype: Dtype = option("float32", "type of the weights: float32, bfloat16 or float16", panel=PANEL)
