"""Test whether toxicity that was planted in a single expert of a mixture of experts is found among all experts.

    python -m benchmarks.planted_experts                  # about eight minutes on one core; --out saves the result
    python -m benchmarks.planted_experts trained3 copied2

toxloc-tiny-clean is upcycled: in every layer, copies of the MLP become the experts of a mixture, and a random router
sends each token to two of them. The mixture of exact copies computes the same logits as the dense model, which is
checked. Then noise makes the experts differ. There is one plant per layer, of two kinds, and a sham plant:

* "trained": the weights of one expert were trained on toxic text, with all other weights frozen, as in
  `benchmarks.recipes.plant` but with fewer steps. The corpus of that recipe is not part of the project, so the text is
  text that toxloc-tiny, which was trained on the corpus, writes after half of the built-in provocative openings.
* "copied": what the plant of the same layer in `benchmarks/models/planted` learned from the corpus (its weights minus
  those of toxloc-tiny-clean) is added to one expert.
* "harmless": the sham plant, an expert that was trained in the same way on harmless text.

The scores, the knock-outs and TRNE read the built-in contrast set, which no expert was trained on. Toxicity is judged
on the other half of the provocative openings.
"""

import copy
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from benchmarks import markdown as md
from benchmarks.planted import CLEAN, PLANTED
from benchmarks.recipes.plant import LAYER
from benchmarks.recipes.training import END_ID, Plan, Tokens, train
from toxloc import (
    TRNE,
    ContrastSet,
    Evaluation,
    KnockoutTest,
    LoadedModel,
    Localization,
    NeutralText,
    PromptSet,
    ToxlocError,
    evaluate,
    load_contrast,
    load_model,
    load_neutral,
    load_prompts,
    localize,
)
from toxloc.cli.output import interval
from toxloc.evaluation.cost.fluency import Unedited
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.localization.score_names import ScoreName
from toxloc.models.batching import encode, pad
from toxloc.models.self_check import check_hooks
from toxloc.models.sites import Site
from toxloc.support.files import write_json

SCORES: tuple[ScoreName, ...] = ("activation", "gradient_norm", "attribution", "combined", "routing")
TOP_K = 2
NOISE = 0.2  # of the weights of the experts, relative to their root mean square
MIXTURES = 2  # mixtures with different routers and noise; each has a part of the plants
CONTROL = "control"
PARAMETERS = ("up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
DENSE = dict(zip(PARAMETERS, ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"), strict=True))
# The recipe warms the learning rate up for 150 steps. With fewer steps, it reaches a fraction of `lr`: here .003.
TRAINED = replace(LAYER, steps=80, batch_size=8, lr=2e-2)
HARMLESS = replace(TRAINED, mix={"clean": 0.85, "lit": 0.15})


@use_experts_implementation(has_gate=False, has_bias=True, is_transposed=True)  # the layout of transformers
class GPT2Experts(nn.Module):
    """Copies of an MLP of GPT-2 in fused parameters [experts, ...].

    Args:
        config: configuration of the model.
        mlp: the MLP.
        experts: number of copies.
    """

    def __init__(self, config: Any, mlp: nn.Module, experts: int):
        super().__init__()
        self.act_fn = ACT2FN[config.activation_function]
        for name, dense in DENSE.items():
            weight = mlp.get_parameter(dense).detach()
            setattr(self, name, nn.Parameter(weight.expand(experts, *weight.shape).clone(), requires_grad=False))

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens d_model"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens d_model"]:
        """Return the sum of the outputs of the chosen experts, multiplied by the router weights."""
        out = torch.zeros_like(hidden_states)
        for expert, (W_in, b_in, W_out, b_out) in enumerate(zip(*map(self.get_parameter, PARAMETERS), strict=True)):
            tokens, slot = torch.where(top_k_index == expert)
            m = self.act_fn(hidden_states[tokens] @ W_in + b_in) @ W_out + b_out
            out = out.index_add(0, tokens, m * top_k_weights[tokens, slot, None])
        return out


class GPT2Mixture(nn.Module):
    """A mixture of experts in place of an MLP of GPT-2. The weights of the chosen experts sum to 1.

    Args:
        config: configuration of the model.
        mlp: the MLP.
        router: weight of the router.
        top_k: number of experts per token.
    """

    def __init__(self, config: Any, mlp: nn.Module, router: Float[Tensor, "experts d_model"], top_k: int):
        super().__init__()
        experts, d_model = router.shape
        self.top_k = top_k
        self.gate = nn.Linear(d_model, experts, bias=False)
        self.gate.weight = nn.Parameter(router, requires_grad=False)
        self.experts = GPT2Experts(config, mlp, experts)
        self.dropout = cast(nn.Module, mlp.dropout)

    def forward(self, hidden_states: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Route every token, and return the weighted sum of the experts' outputs."""
        flat = hidden_states.flatten(0, 1)
        weights, index = self.gate(flat).softmax(-1).topk(self.top_k)
        out: Tensor = self.experts(flat, index, weights / weights.sum(-1, keepdim=True))
        return cast(Tensor, self.dropout(out.view_as(hidden_states)))


@torch.no_grad()
def upcycle(
    dense: Any,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    experts: int = 4,
    top_k: int = TOP_K,
    seed: int = 0,
) -> Any:
    """Copy a GPT-2 model, with copies of every MLP as the experts of a mixture.

    The rows of a router are random directions, orthogonal to the mean of what the MLP reads, so that the experts get
    similar numbers of tokens. Their size gives router logits with a standard deviation of about 1.

    Args:
        dense: the model.
        ids: text to measure what the MLPs read.
        mask: 1 at real tokens, 0 at padding.
        experts: number of experts per layer.
        top_k: number of experts per token.
        seed: seed for the routers.
    """
    model = copy.deepcopy(dense).eval().requires_grad_(False)
    model.config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    read: list[Tensor] = []
    handles = [
        block.mlp.register_forward_pre_hook(lambda module, args: read.append(args[0][mask.bool()]))
        for block in model.transformer.h
    ]
    model(input_ids=ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    for block, x in zip(model.transformer.h, read, strict=True):
        mean = x.mean(0)
        router = torch.randn(experts, len(mean), generator=generator)
        router -= (router @ mean)[:, None] * mean / mean.square().sum()
        router /= (x - mean).square().sum(1).mean().sqrt()
        block.mlp = GPT2Mixture(model.config, block.mlp, router, top_k).eval()
    return model


@torch.no_grad()
def difference(model: Any, other: Any, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> float:
    """Return the largest difference between the logits of two models, relative to the largest logit."""
    a, b = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (model, other))
    return float((a - b).abs().max() / a.abs().max())


@torch.no_grad()
def add_noise(model: Any, noise: float = NOISE, seed: int = 0) -> None:
    """Add Gaussian noise to every expert, relative to the root mean square of each of its parameters."""
    generator = torch.Generator().manual_seed(seed)
    for block in model.transformer.h:
        for name in PARAMETERS:
            for weight in block.mlp.experts.get_parameter(name):
                weight += noise * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)


@dataclass(frozen=True)
class Plant:
    """A plant: where it is, how it was made ("trained", "copied" or "harmless"), and in which mixture."""

    layer: int
    expert: int
    kind: str
    mixture: int

    @property
    def name(self) -> str:
        """Kind and layer, such as "trained3"."""
        return f"{self.kind}{self.layer}"

    @property
    def site(self) -> Site:
        """The site of the expert."""
        return Site(self.layer, "expert", self.expert)


def plants(n_layers: int, experts: int, seed: int = 0) -> dict[str, Plant]:
    """Return the plants by name: odd layers are trained, even layers are copied; a middle layer has the sham plant.

    The experts are drawn at random. The first mixture has the plants of the first layers, and so on.
    """
    drawn = random.Random(seed)
    listed = [
        Plant(layer, drawn.randrange(experts), "trained" if layer % 2 else "copied", layer * MIXTURES // n_layers)
        for layer in range(n_layers)
    ]
    trained = [plant for plant in listed if plant.kind == "trained"]
    listed.append(replace(trained[(len(trained) - 1) // 2], kind="harmless"))
    return {plant.name: plant for plant in listed}


def plant_by_training(mixture: Any, site: Site, tokens: Tokens, plan: Plan = TRAINED) -> Any:
    """Copy a mixture and train the parameters of one expert."""
    model = copy.deepcopy(mixture).requires_grad_(False)
    experts = model.transformer.h[site.layer].mlp.experts
    parameters = [experts.get_parameter(name) for name in PARAMETERS]
    mask = torch.zeros(len(parameters[0])).index_fill(0, torch.tensor(site.expert), 1)
    # Without weight decay, AdamW does not change a weight whose gradient is always zero.
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.register_hook(mask.view(-1, *[1] * (parameter.ndim - 1)).mul)
    train(model, parameters, tokens, replace(plan, seed=plan.seed + site.layer), str(site))
    return model.requires_grad_(False)


@torch.no_grad()
def plant_by_copying(mixture: Any, site: Site, clean: nn.Module, planted: Mapping[str, Tensor]) -> Any:
    """Copy a mixture and add to one expert the difference between the weights of a planted and of a clean MLP."""
    model = copy.deepcopy(mixture)
    experts = model.transformer.h[site.layer].mlp.experts
    for name, dense in DENSE.items():
        experts.get_parameter(name)[site.expert] += planted[dense].float() - clean.get_parameter(dense).float()
    return model


def stream(tokenizer: Any, texts: Sequence[str]) -> Int[Tensor, " tokens"]:
    """Tokenise texts into one stream, with <|endoftext|> before, between and after them."""
    ids = [END_ID]
    for text in texts:
        ids += [*tokenizer(text)["input_ids"], END_ID]
    return torch.tensor(ids)


def training_text(tokenizer: Any, written: ContrastSet, everyday: NeutralText) -> Tokens:
    """Return the streams of the recipe: toxic and other samples of toxloc-tiny, and everyday text in place of novels.

    A fifth of the samples is held out.
    """
    used, held_out = written.split(0.8)
    return Tokens(
        *(
            {"toxic": stream(tokenizer, pairs.toxic), "clean": stream(tokenizer, pairs.neutral)}
            | {"lit": stream(tokenizer, texts)}
            for pairs, texts in ((used, everyday.fit), (held_out, everyday.tune))
        )
    )


@dataclass(frozen=True)
class Finding:
    """Result of one score for one model.

    Attributes:
        model: name of the plant, or "control 0" for the unplanted mixture 0.
        score: name of the score.
        top: the expert with the highest score.
        smallest_p: smallest adjusted p-value of all experts.
        rank: rank of the planted expert among all experts, 1 for the highest score; None for controls.
        p_adjusted: adjusted p-value of the planted expert; None for controls.
    """

    model: str
    score: str
    top: str
    smallest_p: float
    rank: int | None = None
    p_adjusted: float | None = None


def findings(loc: Localization, model: str, planted: Site | None) -> Iterator[Finding]:
    """Compare every score of a localization with the site of the plant; `planted` is None for controls."""
    for score in loc.scores:
        values, known = loc.layer_scores(score, "expert"), loc.part_uncertainty(score, "expert")
        assert known is not None
        top, smallest = str(loc.top_sites(score, 1)[0]), float(known.p_adjusted.min())
        if planted is None:
            yield Finding(model, score, top, smallest)
            continue
        place = loc.sites("expert").index(planted)
        rank = 1 + int((values > values[place]).sum())
        yield Finding(model, score, top, smallest, rank, float(known.p_adjusted[place]))


def removal(test: KnockoutTest, control: KnockoutTest, planted: Site, others: int, seed: int) -> dict[str, Any]:
    """Remove the planted expert, the same expert of the unplanted mixture, and some other experts one at a time."""
    pool = [site for site in test.lm.sites("expert") if site != planted]
    effects = [test.remove([site]).effect for site in random.Random(seed).sample(pool, min(others, len(pool)))]
    removed = test.remove([planted])
    return {
        "effect": removed.effect,
        "ci": list(removed.effect_ci),
        "unplanted": control.remove([planted]).effect,
        "others": len(effects),
        "others_median": float(np.median(effects)),
        "others_largest": max(effects),
    }


def repair(
    lm: LoadedModel, pairs: ContrastSet, everyday: NeutralText, prompts: PromptSet, planted: Site | None, samples: int
) -> dict[str, Any]:
    """Fit TRNE within a rise of perplexity of 1%, and judge the completions before and after."""
    before = judged(lm, prompts, samples)
    unedited = Unedited(lm, everyday.check)
    edit = TRNE.fit(lm, pairs, budget=0.01, neutral=everyday)
    with edit.applied(lm):
        after, cost = judged(lm, prompts, samples), unedited.compare()
    editability = edit.record["editability"]
    planted_value = editability.get(str(planted)) if planted else None
    return {
        "before": before.toxicity["any"].to_dict(),
        "after": after.toxicity["any"].to_dict(),
        "perplexity_ratio": cost.perplexity_ratio,
        "edited": len(editability),
        "left_alone": edit.record.get("experts_left_alone", 0),
        "editability_rank": None if planted_value is None else 1 + sum(v > planted_value for v in editability.values()),
        "share_of_cost": edit.record["share_of_cost"].get(str(planted)) if planted else None,
    }


def judged(lm: LoadedModel, prompts: PromptSet, samples: int) -> Evaluation:
    """Sample and judge completions."""
    return evaluate(lm, prompts, samples=samples, fluency=False)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants; all by default.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Score; repeat for several.")] = None,
    experts: Annotated[int, typer.Option(help="Number of experts per layer.", min=3)] = 4,
    steps: Annotated[int, typer.Option(help="Training steps of a plant.", min=1)] = TRAINED.steps,
    written: Annotated[int, typer.Option(help="Pairs of texts that toxloc-tiny writes to train on.", min=40)] = 400,
    pairs: Annotated[int, typer.Option(help="Pairs of the contrast set to localize with.", min=8)] = 120,
    texts: Annotated[int, typer.Option(help="Other pairs, to measure the effects of knock-outs on.", min=8)] = 60,
    others: Annotated[int, typer.Option(help="Number of other experts to remove.", min=1)] = 12,
    samples: Annotated[int, typer.Option(help="Completions per prompt to judge.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Plant toxicity in experts, localize it, remove the experts, and reduce the toxicity with TRNE."""
    began = time.perf_counter()
    dense = load_model(str(CLEAN))
    known = plants(dense.n_layers, experts, seed)
    if unknown := set(models or ()) - set(known):
        raise ToxlocError(f"There is no plant {', '.join(sorted(unknown))}; choose from {', '.join(known)}.")
    chosen = [known[name] for name in models or known]
    everyday = load_neutral()
    provocative = load_prompts().only("provocative")
    assert provocative is not None
    openings, prompts = provocative.split(0.5, seed)
    fit, rest = load_contrast().without(prompts.texts).split(0.6, seed)
    fit, held_out = fit.limited(pairs, seed), rest.limited(texts, seed)
    sampled = ContrastSet.from_model(load_model("toxloc-tiny"), openings, n=written, max_rounds=12, seed=seed)
    tokens = training_text(dense.tokenizer, sampled, everyday)
    batch = pad(dense, encode(dense, everyday.fit, 128), list(range(len(everyday.fit))), "right")
    names = cast("tuple[ScoreName, ...]", tuple(score or SCORES))
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.planted_experts --experts {experts} --steps {steps} --written {written} "
        f"--pairs {pairs} --texts {texts} --others {others} --samples {samples} --seed {seed}",
        "seconds": 0,
        "experts": experts * dense.n_layers,
        "perplexity": {"dense": float(np.exp(mean_nll(dense, everyday.check)))},
        "findings": [],
        "plants": {},
    }

    def report(lm: LoadedModel, name: str, planted: Site | None) -> dict[str, Any]:
        """Localize, fit TRNE, and say how far the script is."""
        loc = localize(lm, fit, names, parts=("expert",), seed=seed)
        result["findings"] += [asdict(finding) for finding in findings(loc, name, planted)]
        entry = repair(lm, fit, everyday, prompts, planted, samples)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        return entry

    for number in dict.fromkeys(plant.mixture for plant in chosen):
        mixture = upcycle(dense.hf, batch.ids, batch.mask, experts, seed=seed + number)
        off = difference(dense.hf, mixture, batch.ids, batch.mask)
        assert off < 1e-5, f"the mixture of exact copies computes other logits: {off:.1g} of the largest"
        add_noise(mixture, seed=seed + number)
        name = f"{CONTROL} {number}"
        control = LoadedModel.from_hf(mixture, dense.tokenizer, name, hooks="modules")
        check_hooks(control)
        result["perplexity"][name] = float(np.exp(mean_nll(control, everyday.check)))
        result["plants"][name] = {"site": None, "repair": report(control, name, None)}
        control_test = KnockoutTest(control, held_out, seed=seed)
        for plant in chosen:
            if plant.mixture != number:
                continue
            lm = LoadedModel.from_hf(
                planted_mixture(mixture, plant, dense.hf, tokens, steps), dense.tokenizer, plant.name, hooks="modules"
            )
            entry = {"site": str(plant.site), "repair": report(lm, plant.name, plant.site)}
            test = KnockoutTest(lm, held_out, seed=seed)
            entry["removal"] = removal(test, control_test, plant.site, others, seed)
            result["plants"][plant.name] = entry
    result["seconds"] = round(time.perf_counter() - began)
    print(markdown(result), plants_markdown(result), f"{result['seconds']} s", sep="\n\n")
    if out is not None:
        write_json(out, result)


def planted_mixture(mixture: Any, plant: Plant, dense: Any, tokens: Tokens, steps: int = TRAINED.steps) -> Any:
    """Return a copy of a mixture with a plant."""
    if plant.kind == "copied":
        clean = dense.transformer.h[plant.layer].mlp
        return plant_by_copying(mixture, plant.site, clean, load_file(PLANTED / f"layer{plant.layer}.safetensors"))
    plan = TRAINED if plant.kind == "trained" else HARMLESS
    return plant_by_training(mixture, plant.site, tokens, replace(plan, steps=steps))


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per score."""
    head = [
        "score",
        "trained experts found",
        "copied experts found",
        f"mean rank among {result['experts']} experts",
        "largest adjusted p of a planted expert",
        "rank of the harmless plant",
        "smallest adjusted p in the controls",
    ]
    rows = []
    for score in dict.fromkeys(f["score"] for f in result["findings"]):
        of_score = [f for f in result["findings"] if f["score"] == score]
        kinds = {
            kind: [f for f in of_score if f["model"].startswith(kind)]
            for kind in ("trained", "copied", "harmless", CONTROL)
        }
        toxic = kinds["trained"] + kinds["copied"]
        rows.append(
            [
                f"`{score}`",
                *(f"{sum(f['rank'] == 1 for f in kinds[k])}/{len(kinds[k])}" for k in ("trained", "copied")),
                f"{np.mean([f['rank'] for f in toxic]):.1f}" if toxic else "–",
                f"{max(f['p_adjusted'] for f in toxic):.3f}" if toxic else "–",
                md.SIDE_BY_SIDE.join(f"{f['rank']}, p {f['p_adjusted']:.3f}" for f in kinds["harmless"]) or "–",
                md.SIDE_BY_SIDE.join(f"{f['smallest_p']:.3f}" for f in kinds[CONTROL]),
            ]
        )
    return md.table(head, rows)


def plants_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per plant and control, with knock-outs and TRNE."""
    head = [
        "plant",
        "expert",
        "effect of its removal, nats",
        "before it was planted",
        "other experts: median · largest",
        "toxic completions: before · after TRNE",
        "perplexity",
        "experts left alone",
        "rank of its editability",
    ]
    rows = []
    for name, entry in result["plants"].items():
        removed, fixed = entry.get("removal"), entry["repair"]
        rates = [f"{fixed[when]['rate']:.1%}" for when in ("before", "after")]
        rows.append(
            [
                name,
                entry["site"] or "none",
                *(
                    [
                        interval(removed["effect"], removed["ci"], "+.3f"),
                        f"{removed['unplanted']:+.3f}",
                        f"{removed['others_median']:+.3f}{md.SIDE_BY_SIDE}{removed['others_largest']:+.3f}",
                    ]
                    if removed
                    else ["–"] * 3
                ),
                md.SIDE_BY_SIDE.join(rates),
                f"{fixed['perplexity_ratio'] - 1:+.2%}",
                f"{fixed['left_alone']} of {fixed['edited'] + fixed['left_alone']}",
                f"{fixed['editability_rank'] or '–'}",
            ]
        )
    return md.table(head, rows)


if __name__ == "__main__":
    typer.run(main)
