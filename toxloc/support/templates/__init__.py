"""Jinja templates of the report, the sweep's page and the model card, and the one environment that renders them."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..names import short_name

FILTERS = {
    "share": "{:.1%}".format,
    "signed": "{:+.0%}".format,
    "signed1": "{:+.1%}".format,
    "signed2": "{:+.2%}".format,
    "short": "{:.3g}".format,
    "source": short_name,
    "many": lambda n, noun: f"{n} {noun}{'' if n == 1 else 's'}",
}


def render(template: str, *, html: bool, **values: Any) -> str:
    """Render a template; a name that was not given is an error, not an empty text.

    Args:
        template: file name in this folder.
        html: escape values for HTML.
        values: names that the template uses. Filters for numbers: share, signed, signed1, signed2, short,
            many; source for the last part of a path.
    """
    environment = Environment(
        loader=PackageLoader("toxloc.support", "templates"),
        trim_blocks=not html,
        lstrip_blocks=not html,
        undefined=StrictUndefined,
        autoescape=html,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(**values)
