"""Sites: the linear maps that write to the residual stream. Statistics, scores and edits are keyed by them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from ..errors import ToxlocError

T = TypeVar("T")
Part = Literal["mlp", "attention"]
PARTS: tuple[Part, ...] = get_args(Part)
UNITS = {"mlp": "neuron", "attention": "head"}  # name of a unit of each part


@dataclass(frozen=True, order=True)
class Site:
    """The name of a linear map of a model that writes to the residual stream.

    A `Site` is a key and does not belong to a model; `LoadedModel.at(site)` returns the site in a model: its live
    weight, its hooks and its units. Wherever a site is expected, an integer means the MLP of that layer.

    Attributes:
        layer: number of the block, from 0.
        part: "mlp" for W_out, whose units are neurons; "attention" for W_O, whose units are heads.

    Example:
        >>> Site.of(3) == Site(3, "mlp"), Site.of("3.attention")
        (True, Site(layer=3, part='attention'))
    """

    layer: int
    part: str = "mlp"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ToxlocError(f"Unknown part {self.part!r} of a site; choose one of {', '.join(PARTS)}.")

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
            if layer.isdecimal() and part in PARTS:
                return cls(int(layer), part)
        elif not isinstance(site, bool) and hasattr(site, "__index__"):
            return cls(int(site))
        raise ToxlocError(
            f"{site!r} is not a site; give a layer's number for its MLP, a Site, or a name such as '3.attention'."
        )

    def __str__(self) -> str:
        return f"{self.layer}.{self.part}"

    @property
    def title(self) -> str:
        """Name in texts and figures: "layer 3" for an MLP, "layer 3, attention" for an attention."""
        return f"layer {self.layer}" + ("" if self.part == "mlp" else f", {self.part}")


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
