"""The clean model for EleutherAI's lm-evaluation-harness, with whatever lies in its weights. Needs toxloc[lm-eval]."""

from typing import TYPE_CHECKING

from ...errors import ToxlocError
from ...models.loaded import LoadedModel

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


def harness_model(lm: LoadedModel, batch_size: int = 8) -> "HFLM":
    """Hand a model over to lm-evaluation-harness, as it is now: interventions in force count.

    Texts begin with BOS if the model's do.

    Args:
        lm: the model; its `hf` is used, not copied.
        batch_size: requests at a time.

    Raises:
        ToxlocError: lm-eval is not installed.

    Example:
        >>> with edit.applied(lm):                                                             # doctest: +SKIP
        ...     lm_eval.simple_evaluate(harness_model(lm), tasks=["hellaswag"], limit=400)
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ToxlocError("lm-evaluation-harness is not installed; pip install 'toxloc[lm-eval]'.") from error
    return HFLM(pretrained=lm.hf, tokenizer=lm.tokenizer, batch_size=batch_size, max_length=lm.context,
                add_bos_token=lm.prepend_bos)
