"""Sites: the linear maps that write to the residual stream. Statistics, scores and edits are keyed by them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from ..errors import ToxlocError

T = TypeVar("T")
Part = Literal["mlp", "attention", "mixer", "expert", "shared_expert"]
PARTS: tuple[Part, ...] = get_args(Part)
FEED_FORWARD: tuple[Part, ...] = ("mlp", "expert", "shared_expert")
UNITS = {"attention": "head", "mixer": "channel"} | dict.fromkeys(FEED_FORWARD, "neuron")  # name of a unit of each part


@dataclass(frozen=True, order=True)
class Site:
    """The name of a linear map of a model that writes to the residual stream.

    A `Site` is a key and does not belong to a model; `LoadedModel.at(site)` returns the site in a model: its live
    weight, its hooks and its units. Wherever a site is expected, an integer means the MLP of that layer.

    Attributes:
        layer: number of the block, from 0.
        part: "mlp" for W_out, whose units are neurons; "attention" for W_O, whose units are heads; "mixer" for the
            output of a linear recurrence, a state space or a convolution, whose units are channels; "expert" and
            "shared_expert" for W_out of an expert in a mixture of experts, whose units are neurons.
        expert: number of the expert, from 0, if the part is "expert"; else None.

    Example:
        >>> Site.of(3) == Site(3, "mlp"), Site.of("3.attention"), str(Site(3, "expert", 5))
        (True, Site(layer=3, part='attention'), '3.expert.5')
    """

    layer: int
    part: str = "mlp"
    expert: int | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ToxlocError(f"Unknown part {self.part!r} of a site; choose one of {', '.join(PARTS)}.")
        if (self.part == "expert") != (self.expert is not None):
            raise ToxlocError(
                f"A site of the part {self.part!r} cannot have expert={self.expert}; give a number for the part "
                "'expert', as in Site(3, 'expert', 5), and none for other parts."
            )

    @classmethod
    def of(cls, site: "int | str | Site") -> "Site":
        """Convert an integer (the MLP of that layer) or a name such as "3.mlp" to a site; return a `Site` unchanged.

        Raises:
            ToxlocError: `site` is none of these.
        """
        if isinstance(site, Site):
            return site
        if isinstance(site, str):
            layer, _, part = site.partition(".")
            part, _, expert = part.partition(".")
            if layer.isdecimal() and part in PARTS and (expert.isdecimal() if part == "expert" else not expert):
                return cls(int(layer), part, int(expert) if expert else None)
        elif not isinstance(site, bool) and hasattr(site, "__index__"):
            return cls(int(site))
        raise ToxlocError(
            f"{site!r} is not a site; give a layer's number for its MLP, a Site, or a name such as '3.attention' or "
            "'3.expert.5'."
        )

    def __repr__(self) -> str:
        expert = "" if self.expert is None else f", expert={self.expert}"
        return f"Site(layer={self.layer}, part={self.part!r}{expert})"

    def __str__(self) -> str:
        return f"{self.layer}.{self.part}" + ("" if self.expert is None else f".{self.expert}")

    @property
    def title(self) -> str:
        """Name in texts and figures: "layer 3" for an MLP, "layer 3, attention", "layer 3, expert 5"."""
        if self.part == "mlp":
            return f"layer {self.layer}"
        name = self.part.replace("_", " ")
        return f"layer {self.layer}, {name}" + ("" if self.expert is None else f" {self.expert}")


AnySite = int | str | Site  # the types that `Site.of` takes
Unit = tuple[Site, int]  # a unit of a site: a neuron or a head


def unit_of(unit: tuple[Any, int]) -> Unit:
    """Convert the site of a unit to a `Site`; (3, 17) is neuron 17 of layer 3.

    Raises:
        ToxlocError: `unit` is not a pair of a site and a number.
    """
    try:
        site, number = unit
        number = int(number)
    except (TypeError, ValueError):
        raise ToxlocError(f"{unit!r} is not a neuron or a head; give a pair such as (3, 17).") from None
    return (site if isinstance(site, Site) else Site.of(site)), number


class BySite(dict[Site, T]):
    """A mapping from sites to values; as a key, an integer means the MLP of that layer.

    Example:
        >>> BySite({Site(3): "W_out"})[3]
        'W_out'
    """

    def __getitem__(self, site: AnySite) -> T:
        return super().__getitem__(Site.of(site))

    def __setitem__(self, site: AnySite, value: T) -> None:
        super().__setitem__(Site.of(site), value)

    def get(self, site: AnySite, default: Any = None) -> Any:
        """Return the value of a site, or the default if the mapping has no such site."""
        return super().get(Site.of(site), default)

    def __contains__(self, site: object) -> bool:
        return super().__contains__(Site.of(site))  # type: ignore[arg-type]


def sites_of(sites: "AnySite | Iterable[AnySite]") -> list[Site]:
    """Return a single site or several sites as a sorted list without duplicates."""
    as_list = [sites] if isinstance(sites, int | str | Site) else sites
    return sorted({Site.of(site) for site in as_list})
