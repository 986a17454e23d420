"""toxloc: find where a language model keeps its toxicity, turn it down without retraining, prove what it cost.

Names are imported when they are first used, so `import toxloc` and `toxloc --help` are quick. The list of names is in
`__init__.pyi`, which type checkers and editors read too. No other module of the package imports this one, except to
offer a name under a second address (`ContrastSet.from_model`).
"""

import lazy_loader

from .version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
