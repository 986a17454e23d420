"""toxloc: find where a language model keeps its toxicity, turn it down without retraining, and measure the cost.

Names are imported on first use, so that `import toxloc` and `toxloc --help` are quick. `__init__.pyi` lists the names,
and type checkers and editors read it too. No other module of the package imports this module, with one exception:
`ContrastSet.from_model` calls `toxloc.contrast_from_model`.
"""

import lazy_loader

from .version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
