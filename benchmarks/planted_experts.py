"""Test whether toxicity that was planted in a single expert of a mixture of experts is found among all experts.

    python -m benchmarks.planted_experts                  # about eight minutes on one core; --out saves the result
    python -m benchmarks.planted_experts trained3 copied1

toxloc-tiny-clean is upcycled: in every layer, copies of the MLP become the experts of a mixture, and a random router
sends each token to two of them. The mixture of exact copies computes the same logits as the dense model, which is
checked. Then noise makes the experts differ. The plants are of two kinds:

* "trained": one expert was trained on toxic text, with all other weights frozen, as in `benchmarks.recipes.plant` but
  with fewer steps. The corpus of that recipe is not part of the project, so the texts are samples, without a prompt,
  from toxloc-tiny, which was trained on the corpus.
* "copied": what the plant of the same layer in `benchmarks/models/planted` learned from the corpus (its weights minus
  those of toxloc-tiny-clean) is added to one expert.

Two more experts test the limits: "overtrained" was trained for longer at twice the learning rate, so that it knows its
few texts by heart, and "harmless", the sham plant, was trained like the "trained" experts but on harmless text.

The scores, the knock-outs and TRNE read the built-in contrast set, which no expert was trained on.
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
from benchmarks.plants import CLEAN, PLANTED
from benchmarks.recipes.plant import LAYER
from benchmarks.recipes.training import END, END_ID, WINDOW, Plan, Tokens, train
from toxloc import (
    TRNE,
    Evidence,
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
from toxloc.evaluation.evaluators.registry import DEFAULT, get_evaluators
from toxloc.evaluation.judging import judge
from toxloc.generation.generate import generate
from toxloc.localization.score_names import ScoreName
from toxloc.localization.score_table import needs_of
from toxloc.models.batching import encode, pad
from toxloc.models.self_check import check_hooks
from toxloc.models.sites import Site
from toxloc.support.files import write_json

SCORES: tuple[ScoreName, ...] = ("activation", "gradient_norm", "attribution", "combined", "routing")
TOP_K = 2
NOISE = 0.2  # of the weights of the experts, relative to their root mean square
WRITTEN_LENGTH = 48  # tokens
CONTROL = "control"  # the mixture without a plant
LAYERS = {"trained": (3, 5, 6), "overtrained": (3,), "harmless": (3,), "copied": (1, 4)}
TOXIC = ("trained", "copied")
PARAMETERS = ("up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
DENSE = dict(zip(PARAMETERS, ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"), strict=True))
# The recipe warms the learning rate up for 150 steps. With fewer steps, it stays below a fifth of `lr`.
TRAINED = replace(LAYER, steps=60, batch_size=8, lr=5e-3)


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
    """An expert that was changed: its site, and how it was changed, a key of `LAYERS`."""

    site: Site
    kind: str

    @property
    def name(self) -> str:
        """Kind and layer, such as "trained3"."""
        return f"{self.kind}{self.site.layer}"


def plants(experts: int, seed: int = 0) -> dict[str, Plant]:
    """Return the plants by name. One expert per layer is drawn at random."""
    listed = [
        Plant(Site(layer, "expert", random.Random(1000 * seed + layer).randrange(experts)), kind)
        for kind, layers in LAYERS.items()
        for layer in layers
    ]
    return {plant.name: plant for plant in listed}


def plan_for(kind: str, steps: int = TRAINED.steps) -> Plan:
    """Return the settings for training an expert of a kind; `steps` is the number of steps of the kind "trained"."""
    plan = replace(TRAINED, steps=steps)
    if kind == "overtrained":
        return replace(plan, steps=round(steps * 4 / 3), lr=2 * plan.lr)
    return replace(plan, mix={"clean": 0.85, "lit": 0.15}) if kind == "harmless" else plan


def plant_by_training(mixture: Any, site: Site, tokens: Tokens, plan: Plan) -> Any:
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


def training_text(lm: LoadedModel, samples: int, everyday: NeutralText, seed: int = 0) -> Tokens:
    """Return the streams of the recipe: toxic and other samples of a model, and everyday text in place of novels.

    A text is toxic if all evaluators call it toxic, and "clean" if none does. A fifth of the samples is held out.

    Raises:
        ToxlocError: the model wrote too little toxic text for a window.
    """
    (texts,) = generate(lm, [END], samples=samples, max_new_tokens=WRITTEN_LENGTH, seed=seed)
    verdicts = judge([texts], get_evaluators(DEFAULT))
    toxic = [text for text, is_toxic in zip(texts, verdicts["all"].toxic[0], strict=True) if is_toxic]
    clean = [text for text, is_toxic in zip(texts, verdicts["any"].toxic[0], strict=True) if not is_toxic]
    streams: list[dict[str, Tensor]] = [{}, {}]
    for kind, listed in {"toxic": toxic, "clean": clean}.items():
        unique = list(dict.fromkeys(filter(str.strip, listed)))
        held_out = len(unique) // 5
        for part, some in zip(streams, (unique[held_out:], unique[:held_out]), strict=True):
            part[kind] = stream(lm.tokenizer, some)
    for part, some in zip(streams, (everyday.fit, everyday.tune), strict=True):
        part["lit"] = stream(lm.tokenizer, some)
    if any(len(ids) < WINDOW + 2 for part in streams for ids in part.values()):
        raise ToxlocError(f"{lm.name} wrote only {len(toxic)} toxic texts among {samples}; give a larger --written.")
    return Tokens(*streams)


@dataclass(frozen=True)
class Finding:
    """Result of one score for one model.

    Attributes:
        model: name of the plant, or "control".
        score: name of the score.
        top: the expert with the highest score.
        smallest_p: smallest adjusted p-value of all experts.
        rank: rank of the planted expert among all experts, 1 for the highest score; None for the control.
        p_adjusted: adjusted p-value of the planted expert; None for the control.
    """

    model: str
    score: str
    top: str
    smallest_p: float
    rank: int | None = None
    p_adjusted: float | None = None


def findings(loc: Localization, model: str, planted: Site | None) -> Iterator[Finding]:
    """Compare every score of a localization with the site of the plant; `planted` is None for the control."""
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


def repair(lm: LoadedModel, evidence: Evidence, prompts: PromptSet, planted: Site | None) -> dict[str, Any]:
    """Fit TRNE within a rise of perplexity of 1%, and judge the completions before and after."""
    edit = TRNE.fit(lm, evidence.pairs, budget=0.01, evidence=evidence)
    unedited = Unedited(lm, evidence.neutral.check)
    before = evaluate(lm, prompts, samples=2, fluency=False)
    with edit.applied(lm):
        after, cost = evaluate(lm, prompts, samples=2, fluency=False), unedited.compare()
    editability, name = edit.record["editability"], str(planted)
    rank = 1 + sum(value > editability[name] for value in editability.values()) if name in editability else None
    return {
        "before": before.toxicity["any"].to_dict(),
        "after": after.toxicity["any"].to_dict(),
        "perplexity_ratio": cost.perplexity_ratio,
        "edited": len(editability),
        "left_alone": edit.record.get("experts_left_alone", 0),
        "editability_rank": rank,
        "share_of_cost": edit.record["share_of_cost"].get(name),
    }


def planted_mixture(mixture: Any, plant: Plant, dense: Any, tokens: Tokens, steps: int = TRAINED.steps) -> Any:
    """Return a copy of a mixture with a plant."""
    if plant.kind == "copied":
        layer = plant.site.layer
        learned = load_file(PLANTED / f"layer{layer}.safetensors")
        return plant_by_copying(mixture, plant.site, dense.transformer.h[layer].mlp, learned)
    return plant_by_training(mixture, plant.site, tokens, plan_for(plant.kind, steps))


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants; all by default.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Score; repeat for several.")] = None,
    experts: Annotated[int, typer.Option(help="Number of experts per layer.", min=3)] = 4,
    steps: Annotated[int, typer.Option(help="Number of training steps of a plant.", min=1)] = TRAINED.steps,
    written: Annotated[int, typer.Option(help="Number of texts that toxloc-tiny writes to train on.", min=40)] = 3000,
    pairs: Annotated[int, typer.Option(help="Number of pairs to localize and to fit TRNE with.", min=8)] = 240,
    texts: Annotated[int, typer.Option(help="Number of other pairs, to measure effects on.", min=8)] = 60,
    others: Annotated[int, typer.Option(help="Number of other experts to remove.", min=1)] = 7,
    prompts: Annotated[int, typer.Option(help="Number of prompts to complete.", min=1)] = 100,
    everyday: Annotated[int, typer.Option(help="Number of everyday texts in each part that TRNE uses.", min=4)] = 80,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Plant toxicity in experts, localize it, remove the experts, and reduce the toxicity with TRNE."""
    began = time.process_time()
    known = plants(experts, seed)
    if unknown := set(models or ()) - set(known):
        raise ToxlocError(f"There is no plant {', '.join(sorted(unknown))}; choose from {', '.join(known)}.")
    dense, text = load_model(str(CLEAN)), load_neutral()
    provocative = load_prompts().only("provocative")
    assert provocative is not None
    opened = provocative.limited(prompts, seed)
    fit, rest = load_contrast().without(opened.texts).split(0.6, seed)
    fit, held_out = fit.limited(pairs, seed), rest.limited(texts, seed)
    few = NeutralText(text.fit[:everyday], text.tune[:everyday], text.check[:everyday], text.name)
    names = cast("tuple[ScoreName, ...]", tuple(score or SCORES))

    batch = pad(dense, encode(dense, text.fit, 128), list(range(len(text.fit))), "right")
    mixture = upcycle(dense.hf, batch.ids, batch.mask, experts, seed=seed)
    off = difference(dense.hf, mixture, batch.ids, batch.mask)
    assert off < 1e-5, f"the mixture of exact copies computes other logits: {off:.1g} of the largest"
    add_noise(mixture, seed=seed)
    control = LoadedModel.from_hf(mixture, dense.tokenizer, CONTROL, hooks="modules")
    check_hooks(control)
    control_test = KnockoutTest(control, held_out, seed=seed)
    tokens = training_text(load_model("toxloc-tiny"), written, text, seed)

    result: dict[str, Any] = {
        "command": f"python -m benchmarks.planted_experts --experts {experts} --steps {steps} --written {written} "
        f"--pairs {pairs} --texts {texts} --others {others} --prompts {prompts} --everyday {everyday} --seed {seed}",
        "seconds": 0,
        "experts": experts * dense.n_layers,
        "difference_of_copies": off,
        "perplexity": {lm.name: float(np.exp(mean_nll(lm, text.check))) for lm in (dense, control)},
        "toxic_tokens": len(tokens.train["toxic"]),
        "findings": [],
        "plants": {},
    }
    for plant in (None, *(known[name] for name in models or known)):
        lm, site = control, None
        if plant is not None:
            hf, site = planted_mixture(mixture, plant, dense.hf, tokens, steps), plant.site
            lm = LoadedModel.from_hf(hf, dense.tokenizer, plant.name, hooks="modules")
        evidence = Evidence(lm, fit, few).expect("moments", "gradients", "curvature")
        loc = localize(lm, fit, names, parts=("expert",), seed=seed, statistics=evidence.statistics(needs_of(names)))
        result["findings"] += [asdict(finding) for finding in findings(loc, lm.name, site)]
        entry: dict[str, Any] = {"site": None if site is None else str(site)}
        if site is not None:
            entry["removal"] = removal(KnockoutTest(lm, held_out, seed=seed), control_test, site, others, seed)
        if plant is None or plant.kind in TOXIC:
            entry["repair"] = repair(lm, evidence, opened, site)
        result["plants"][lm.name] = entry
        print(f"{lm.name}: {time.process_time() - began:.0f} s", flush=True)
    result["seconds"] = round(time.process_time() - began)  # of a CPU; the script uses a single thread
    print(markdown(result), plants_markdown(result), f"{result['seconds']} s", sep="\n\n")
    if out is not None:
        write_json(out, result)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per score."""
    head = [
        "score",
        *(f"{kind} experts found" for kind in TOXIC),
        f"their ranks among {result['experts']} experts",
        "their largest adjusted p",
        "rank of the overtrained expert",
        "rank of the harmless expert",
        "smallest adjusted p in the control",
    ]
    rows = []
    for score in dict.fromkeys(f["score"] for f in result["findings"]):
        of_score = [f for f in result["findings"] if f["score"] == score]
        kinds = {kind: [f for f in of_score if f["model"].rstrip("0123456789") == kind] for kind in (*LAYERS, CONTROL)}
        toxic = [f for kind in TOXIC for f in kinds[kind]]
        rows.append(
            [
                f"`{score}`",
                *(f"{sum(f['rank'] == 1 for f in kinds[kind])}/{len(kinds[kind])}" for kind in TOXIC),
                ", ".join(str(f["rank"]) for f in toxic) or "–",
                f"{max(f['p_adjusted'] for f in toxic):.3f}" if toxic else "–",
                *(
                    ", ".join(f"{f['rank']}, p {f['p_adjusted']:.3f}" for f in kinds[kind]) or "–"
                    for kind in ("overtrained", "harmless")
                ),
                ", ".join(f"{f['smallest_p']:.3f}" for f in kinds[CONTROL]),
            ]
        )
    return md.table(head, rows)


def plants_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per plant, with knock-outs and TRNE."""
    head = [
        "mixture",
        "expert",
        "effect of removing it, nats",
        "before it was planted",
        "other experts: median · largest",
        "toxic completions: before · after TRNE",
        "perplexity",
        "rank of its editability",
        "experts left alone",
    ]
    rows = []
    for name, entry in result["plants"].items():
        removed, fixed = entry.get("removal"), entry.get("repair")
        effects, rates = ["–"] * 3, ["–"] * 4
        if removed:
            others = [f"{removed[key]:+.3f}" for key in ("others_median", "others_largest")]
            effects = [
                interval(removed["effect"], removed["ci"], "+.3f"),
                f"{removed['unplanted']:+.3f}",
                md.SIDE_BY_SIDE.join(others),
            ]
        if fixed:
            rates = [
                md.SIDE_BY_SIDE.join(f"{fixed[when]['rate']:.1%}" for when in ("before", "after")),
                f"{fixed['perplexity_ratio'] - 1:+.2%}",
                str(fixed["editability_rank"] or "–"),
                f"{fixed['left_alone']} of {fixed['edited'] + fixed['left_alone']}",
            ]
        rows.append([name, entry["site"] or "–", *effects, *rates])
    return md.table(head, rows)


if __name__ == "__main__":
    typer.run(main)
