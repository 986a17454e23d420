"""The headline of a localization: whether a single site stands out, in one sentence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..models.sites import Site
from ..support.intervals import Interval
from ..support.significance import ALPHA, p_text, signed_text


@runtime_checkable
class Removal(Protocol):
    """The measured effect of removing sites on held-out text, such as a `Knockout`.

    Attributes:
        sites: sites that were removed as a whole.
        units: single units that were removed.
        neutral_rise: rise of the NLL of neutral text, in nats per token.
        effect: rise of the NLL of toxic text minus `neutral_rise`, in nats per token.
        effect_ci: 95% interval of `effect`.
        breaks_model: whether the model no longer predicts neutral text without the sites.
    """

    @property
    def sites(self) -> Sequence[Site]: ...
    @property
    def units(self) -> Sequence[Any]: ...
    @property
    def neutral_rise(self) -> float: ...
    @property
    def effect(self) -> float: ...
    @property
    def effect_ci(self) -> Interval: ...
    @property
    def breaks_model(self) -> bool: ...


@dataclass(frozen=True)
class Headline:
    """Whether a site stands out, and on which evidence.

    A site stands out if its score has an adjusted p-value below 0.05, and removing the site on held-out text agrees:
    toxic text loses more likelihood than neutral text, with a 95% interval above 0, and the model does not break.

    Attributes:
        score: title of the score.
        site: the site with the highest score of those that stand out. If none does, the site with the highest score of
            those whose adjusted p-value is below 0.05, first of those that were not removed yet; else the site with the
            smallest adjusted p-value or, without p-values, the highest score. Only positive scores count; None if no
            site has one.
        p_adjusted: p-value of the site, adjusted for testing every site of all parts; None without p-values.
        removal: the measured removal of the site; None if it was not measured.
        stands_out: whether the site stands out.
        others: other sites for which the same holds: they stand out as well or, if nothing was removed yet, have an
            adjusted p-value below 0.05 as well. The highest score is first.
    """

    score: str
    site: Site | None
    p_adjusted: float | None = None
    removal: Removal | None = None
    stands_out: bool = False
    others: tuple[Site, ...] = ()

    @property
    def part(self) -> str | None:
        """Part of the site, such as "mlp"."""
        return None if self.site is None else self.site.part

    @property
    def unconfirmed(self) -> tuple[Site, ...]:
        """The sites that are above chance and whose removal was not measured, highest score first."""
        if self.site is None or self.p_adjusted is None or self.p_adjusted >= ALPHA or self.removal is not None:
            return ()
        return self.site, *self.others

    @property
    def text(self) -> str:
        """The headline as one sentence.

        Example:
            >>> Headline("attribution", Site(3), 0.312).text
            'No single site stands out (adjusted p .31).'
        """
        if self.site is None:
            return f"No single site stands out: no site has a positive {self.score}."
        if self.p_adjusted is None:
            return f"The {self.score} of {_named(self.site)} is the highest, but without p-values it can be chance."
        p = f"adjusted p {p_text(self.p_adjusted)}"
        if self.p_adjusted >= ALPHA:
            return f"No single site stands out ({p})."
        sites = _named(self.site, *self.others)
        above = f"adjusted p below {p_text(ALPHA)} each" if self.others else p
        if self.removal is None:
            return (
                f"The {self.score} of {sites} is above chance ({above}), but not yet confirmed by removal on held-out "
                "text."
            )
        low, high = self.removal.effect_ci
        effect = f"{signed_text(self.removal.effect)} [{signed_text(low)}, {signed_text(high)}] nats per token"
        if self.stands_out:
            stand, removing = "stands out", "removing it"
            if self.others:
                stand, removing, effect = "stand out", "removing each of them", f"{_named(self.site)}: {effect}"
            return (
                f"{sites[0].upper()}{sites[1:]} {stand} ({above}): {removing} raises the NLL of held-out toxic text "
                f"more than that of neutral text ({effect})."
            )
        start = f"No single site stands out: {sites} has {p}, but removing it"
        if self.removal.breaks_model:
            rise = signed_text(self.removal.neutral_rise)
            return f"{start} breaks the model (NLL of neutral text {rise} nats per token)."
        return f"{start} on held-out text does not confirm it (effect {effect})."

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the sentence by name; sites are given by their names."""
        r = self.removal
        return {
            "score": self.score,
            "site": None if self.site is None else str(self.site),
            "part": self.part,
            "p_adjusted": self.p_adjusted,
            "removal": r
            and {
                "effect": r.effect,
                "effect_ci": list(r.effect_ci),
                "neutral_rise": r.neutral_rise,
                "breaks_model": r.breaks_model,
            },
            "stands_out": self.stands_out,
            "others": [str(site) for site in self.others],
            "text": self.text,
        }


def agrees(removal: Removal) -> bool:
    """Return whether a removal shows that a site carries toxicity, without breaking the model."""
    return removal.effect_ci[0] > 0 and removal.effect > 0 and not removal.breaks_model


def headline_of(
    score: str, values: Mapping[Site, float], p_adjusted: Mapping[Site, float], removals: Iterable[Removal] = ()
) -> Headline:
    """Decide whether a site stands out; see `Headline`.

    Args:
        score: title of the score.
        values: score of every site, minus the value that carries no information.
        p_adjusted: adjusted p-value of every site; empty if the score has no p-values.
        removals: removals of single sites on held-out text; removals of several sites or of units are ignored.

    Example:
        >>> headline_of("attribution", {Site(0): 0.1, Site(1): 0.3}, {Site(0): 0.7, Site(1): 0.3}).text
        'No single site stands out (adjusted p .3).'
    """
    removed = {r.sites[0]: r for r in removals if len(r.sites) == 1 and not r.units}
    highest = sorted((site for site in values if values[site] > 0), key=lambda site: -values[site])
    significant = [site for site in highest if p_adjusted.get(site, 1.0) < ALPHA]
    confirmed = [site for site in significant if site in removed and agrees(removed[site])]
    chosen = confirmed or [site for site in significant if site not in removed] or significant[:1]
    if not chosen and highest:
        chosen = [min(highest, key=lambda site: p_adjusted.get(site, 1.0))]  # of equal p-values, the highest score
    if not chosen:
        return Headline(score, None)
    site, *others = chosen
    return Headline(score, site, p_adjusted.get(site), removed.get(site), bool(confirmed), tuple(others))


def _named(*sites: Site) -> str:
    """Return the names of sites, such as "layers 2 (MLP) and 5 (attention)"."""
    names = [f"{site.layer} ({_part(site)})" for site in sites]
    if len(names) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"


def _part(site: Site) -> str:
    return "MLP" if site.part == "mlp" else site.title.split(", ")[1]
