"""Jinja templates of the report, the page of a sweep and the model card, and the function that renders them."""

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
    """Render a template.

    Templates can use the filters share, signed, signed1, signed2, short and many for numbers, and source for the last
    part of a path.

    Args:
        template: file name in this folder.
        html: whether to escape values for HTML.
        values: variables of the template.

    Raises:
        UndefinedError: the template uses a variable that was not given.
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
