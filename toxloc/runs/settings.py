"""The settings of a run."""

import shlex

from pydantic import BaseModel, ConfigDict, Field

from ..evaluation.evaluators.registry import DEFAULT


class Settings(BaseModel):
    """Everything that decides a run's numbers; written into results.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("toxloc-tiny", description="built-in name, Hugging Face folder, .gguf file or hub id")
    contrast: str = Field("builtin", description="toxic and neutral texts to localize with and to fit on; 'sampled' "
                                                 "for texts of the model's own")
    prompts: str = Field("builtin", description="openings to complete")
    neutral: str = Field("builtin", description="everyday text that budgets are tuned on")
    check: str | None = Field(None, description="everyday text that the cost is checked on; default: a part of neutral")
    evaluators: tuple[str, ...] = Field(DEFAULT, description="judges of the completions")
    budget: float = Field(0.01, gt=0, lt=1, description="perplexity rise allowed to TRNE")
    meow2x_budget: float = Field(0.02, gt=0, lt=1, description="perplexity rise allowed to Meow2X")
    samples: int = Field(5, ge=1, description="completions per prompt")
    max_prompts: int = Field(200, ge=1, description="prompts of each kind, at most")
    max_texts: int = Field(600, ge=8, description="contrast texts of each side, at most")
    max_neutral: int = Field(500, ge=12, description="everyday texts, at most")
    knockouts: int = Field(32, ge=0, description="single neurons to remove in the causal test; 0 for no such test")
    max_new_tokens: int = Field(20, ge=1, description="length of a completion in tokens")
    seed: int = Field(0, ge=0, description="of every draw")
    device: str | None = Field(None, description="cpu, cuda, mps; default: CUDA where there is one")
    dtype: str = Field("float32", description="type of the weights")

    def command(self) -> str:
        """Return the shell command that repeats the run."""
        parts = ["toxloc", "run"]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            for one in value if isinstance(value, tuple) else (value,):
                parts += [f"--{'evaluator' if name == 'evaluators' else name.replace('_', '-')}", str(one)]
        return shlex.join(parts)
