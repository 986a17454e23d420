"""Settings for the texts of a fit; importable without torch."""

from ..support.settings import Settings, option

READ, COUNT = "What to read", "How to measure"


class NeutralSettings(Settings):
    """Settings for the everyday text."""

    neutral: str = option(
        "builtin", "everyday text on which the cost is kept within its budget: builtin or a file", panel=READ
    )
    max_neutral: int = option(500, "draw at most this many everyday texts", panel=COUNT, ge=12)


class FitTextSettings(NeutralSettings):
    """Settings for the texts of a fit: a contrast set, and everyday text for the budget."""

    contrast: str = option(
        "builtin",
        "toxic and neutral texts to learn the difference from: builtin, a CSV, TSV, "
        "JSONL or Parquet file, or a hub dataset",
        panel=READ,
    )
    max_texts: int = option(600, "draw at most this many contrast texts of each side", panel=COUNT, ge=8)
