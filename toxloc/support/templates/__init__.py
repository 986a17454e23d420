"""Jinja templates of the report, the page of a sweep and the model card, and the function that renders them."""

import math
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..control_characters import visible
from ..markdown import code_span, literal
from ..names import short_name

FILTERS = {
    "share": "{:.1%}".format,
    "signed": "{:+.0%}".format,
    "signed1": "{:+.1%}".format,
    "signed2": "{:+.2%}".format,
    "short": "{:.3g}".format,
    "source": short_name,
    "visible": visible,
    "many": lambda n, noun: f"{n} {noun}{'' if n == 1 else 's'}",
    "code": lambda text: Markup(code_span(text)),
    "python": lambda text: Markup(repr(str(text))),
    "yaml": lambda text: Markup(yaml.safe_dump(text, default_style='"', width=math.inf).strip()),
}


def render(template: str, **values: Any) -> str:
    """Render a template. Values that are not Markup are escaped for its language, HTML or Markdown.

    Control characters in values are shown as escapes; a page keeps line breaks and tabs.

    Templates can use the filters share, signed, signed1, signed2, short and many for numbers, source for the last part
    of a path, visible for control characters, and, in Markdown, code, python and yaml for a code span, a Python literal
    and a YAML scalar.

    Args:
        template: file name in this folder; it ends in .html.j2 or .md.j2.
        values: variables of the template.

    Raises:
        UndefinedError: the template uses a variable that was not given.
    """
    html = template.endswith(".html.j2")
    environment = Environment(
        loader=PackageLoader("toxloc.support", "templates"),
        trim_blocks=not html,
        lstrip_blocks=not html,
        undefined=StrictUndefined,
        autoescape=html,
        finalize=_for_html if html else _for_markdown,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(**values)


def _for_html(value: Any) -> Any:
    """Show the control characters of a string; Jinja then escapes the markup."""
    return visible(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _for_markdown(value: Any) -> Any:
    return value if isinstance(value, Markup) else literal(str(value))
