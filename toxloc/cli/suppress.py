"""`toxloc suppress`: fit one method."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import model_validator
from rich.table import Table

from ..errors import ToxlocError
from ..interventions.registry import method_settings
from ..interventions.settings import MethodSettings
from ..models.settings import ModelSettings
from ..support.settings import Seed, option
from ..texts.settings import FitTextSettings
from .from_settings import takes
from .options import EXECUTION, MEASUREMENT, MODEL, Overwrite
from .output import stopping, terminal


class SuppressSettings(FitTextSettings, ModelSettings):
    """The options of `toxloc suppress`."""

    model: str = option(..., MODEL)
    method: str = option("trne", "method that turns toxicity down; toxloc methods lists all methods", panel=MEASUREMENT)
    budget: float | None = option(
        None,
        "largest relative rise of perplexity on everyday text that the method may cause: 0.01 is 1%; default: 0.01, or "
        "no limit if --kl-budget is given",
        panel=MEASUREMENT,
    )
    kl_budget: float | None = option(
        None,
        "largest KL divergence from the unedited model on everyday text that the method may cause, in nats per token; "
        "default: no limit",
        panel=MEASUREMENT,
    )
    options: tuple[str, ...] = option(
        (),
        "another setting of the method as NAME=VALUE, such as ridge=auto; repeat the option for several settings; "
        "toxloc methods METHOD lists all settings",
        panel=MEASUREMENT,
        flag="set",
    )
    seed: Seed = option(0, "seed for the random draw and division of the texts", panel=MEASUREMENT)

    @model_validator(mode="after")
    def _check(self) -> "SuppressSettings":
        self.of_method()
        return self

    def of_method(self) -> MethodSettings:
        """Return the settings of the method.

        Raises:
            ToxlocError: the method is unknown, or a setting is invalid.
        """
        values: dict[str, Any] = {"seed": self.seed}
        limits = {"perplexity": self.budget, "kl": self.kl_budget}
        if any(limit is not None for limit in limits.values()):
            values["budget"] = limits
        return method_settings(self.method, **{**values, **dict(map(_parsed, self.options))})


def _parsed(text: str) -> tuple[str, Any]:
    from ..support.bounded_yaml import parse_yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ToxlocError(f"--set {text}: write NAME=VALUE, such as ridge=auto.")
    try:
        return name.strip(), parse_yaml(value)
    except ValueError:
        raise ToxlocError(
            f"--set {text}: the value cannot be read; write a number, a word or a list such as [3, 4]."
        ) from None


@takes(SuppressSettings, arguments=("model",))
def suppress(
    settings: SuppressSettings,
    out: Annotated[str, typer.Option(help="Folder for the fitted intervention.", rich_help_panel=EXECUTION)],
    overwrite: Overwrite = False,
) -> None:
    """Fit one method to a model and save the intervention, without a copy of the model.

    The strength is the largest strength whose cost on everyday text stays within the budget. Pass the folder to
    `toxloc export`, or to toxloc.load_intervention in Python.
    """
    from ..support.files import check_free, reserved

    check_free(Path(out), overwrite)
    console, method = terminal(stderr=True), settings.of_method()
    with console.status("loading libraries"):
        from ..interventions.evidence import Evidence
        from ..interventions.fitting import fit_method
        from ..models.loading import load_model, pick_device
        from ..support.progress import shown, step
        from ..texts.loading import load_contrast, load_neutral
    pick_device(settings.device)
    pairs = load_contrast(settings.contrast).limited(settings.max_texts, settings.seed)
    everyday = load_neutral(settings.neutral, limit=settings.max_neutral, seed=settings.seed)
    with reserved(out), stopping("Nothing was written."), shown(console):
        with step(f"Loading {settings.model}"):
            lm = load_model(settings.model, **settings.loading())
        settings.announce(lm.name, lm.tokenizer)
        pairs, everyday = settings.in_form(lm, pairs), settings.in_form(lm, everyday)
        with step(f"Fitting {settings.method}"):
            fitted = fit_method(settings.method, Evidence(lm, pairs, everyday), method)
        fitted.save(out, overwrite)
    table = Table("everyday text", "perplexity", "KL, nats per token", title=f"Cost of {settings.method} on {lm.name}")
    for part, texts in (("tuned", everyday.tune), ("check", everyday.check)):
        ratio, kl = fitted.record.get(f"{part}_perplexity_ratio"), fitted.record.get(f"{part}_kl")
        table.add_row(
            f"{everyday.name}: {len(texts)} texts for {'tuning' if part == 'tuned' else 'checking'}",
            "not measured" if ratio is None else f"{ratio - 1:+.2%}",
            "not measured" if kl is None else f"{kl:.3g}",
        )
    out_console = terminal()
    out_console.print(table)
    out_console.print(f"Changes: {fitted.where()}", soft_wrap=True)
    out_console.print(f"Saved: {out}", soft_wrap=True)
