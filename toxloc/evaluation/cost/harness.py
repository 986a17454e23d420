"""Wrap a model with its interventions for EleutherAI's lm-evaluation-harness. Needs toxloc[lm-eval]."""

from typing import TYPE_CHECKING

from ...errors import ToxlocError
from ...models.loaded import LoadedModel

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


def harness_model(lm: LoadedModel, batch_size: int = 8) -> "HFLM":
    """Wrap a model for lm-evaluation-harness; interventions that are applied while the harness runs take effect.

    Texts begin with BOS if `lm.prepend_bos` is True.

    Args:
        lm: the model; `lm.hf` is used without a copy.
        batch_size: number of requests per batch.

    Raises:
        ToxlocError: lm-eval is not installed.

    Example:
        >>> with edit.applied(lm):                                                             # doctest: +SKIP
        ...     lm_eval.simple_evaluate(harness_model(lm), tasks=["hellaswag"], limit=400)
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ToxlocError("lm-evaluation-harness is not installed; run pip install 'toxloc[lm-eval]'.") from error
    return HFLM(
        pretrained=lm.hf,
        tokenizer=lm.tokenizer,
        batch_size=batch_size,
        max_length=lm.context,
        add_bos_token=lm.prepend_bos,
    )
