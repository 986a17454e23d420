import itertools
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import toxloc.models.batching
from tests.conftest import bits, random_model, same_bits
from tests.localization.by_hand import ids_of
from tests.localization.prefixes_by_hand import PAIRS, USABLE, difference_of, prefix_and_tokens
from toxloc import ContrastSet, Localization, ToxlocError, faithfulness, localize, patch
from toxloc.causal.faithfulness import SHARES
from toxloc.localization.first_difference import first_differences
from toxloc.localization.pair_batch import PairBatch, PairReader
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Site

PARTS = ("mlp", "attention")
ONE = (0.5, 1.0)


def hooked(lm, stack, change):
    """Hook the keys of every site; `change` takes the site and its keys [pos, d_in] and returns the new keys."""
    for site in lm.sites(*PARTS):

        def before(module, args, site=site):
            new = change(site, args[0].flatten(0, -2).clone())
            return None if new is None else (new.view(args[0].shape),)

        handle = lm.down_projection(site).register_forward_pre_hook(before)
        stack.callback(handle.remove)


def keys_of(lm, ids):
    """Return the keys of every site [pos, d_in] in the plain Hugging Face model."""
    kept = {}
    with ExitStack() as stack, torch.no_grad():
        hooked(lm, stack, lambda site, keys: kept.update({site: keys}))
        lm.hf(input_ids=ids)
    return kept


def means_of(lm, texts):
    rows = [keys_of(lm, ids_of(lm, text)) for text in texts]
    return {site: torch.cat([row[site][1:] for row in rows]).mean(0) for site in rows[0]}


def difference_with(lm, pair, new=None, replaced=None):
    """Return D of a pair with the keys at all positions but the first replaced where `replaced` of a site is True."""
    (ids, toxic, neutral) = pair

    def change(site, keys):
        columns = slice(None) if replaced is None else torch.from_numpy(replaced[site])
        keys[1:, columns] = new(site, keys)[1:, columns]
        return keys

    with ExitStack() as stack, torch.no_grad():
        if new is not None:
            hooked(lm, stack, change)
        return difference_of(lm.hf(input_ids=ids).logits[0, -1], toxic, neutral).item()


def paired(sides):
    """Return pairs from (toxic, neutral) texts."""
    return ContrastSet([toxic for toxic, _ in sides], [neutral for _, neutral in sides], paired=True)


def turned(i, gain):
    """Return the sides of a pair, exchanged if `gain` is not above 0, because D then has the other sign."""
    return (PAIRS.toxic[i], PAIRS.neutral[i])[:: 1 if gain > 0 else -1]


def pairs_that_gain(lm):
    """Return the usable pairs, each with its sides in the order in which the MLPs and attentions together raise D.

    Further pairs, which differ from the first token, hold the other side of each, so that the neutral texts and their
    mean do not depend on the order.
    """
    mean = means_of(lm, [side[i] for i in USABLE for side in (PAIRS.toxic, PAIRS.neutral)])
    sides = []
    for i in USABLE:
        pair = prefix_and_tokens(lm, i)
        gain = difference_with(lm, pair) - difference_with(lm, pair, lambda site, x: mean[site].expand_as(x))
        own = turned(i, gain)
        sides += [own, ("Zebra crossing", own[0])]
    return paired(sides), mean


def located(lm, pairs=PAIRS, scores=("activation",)):
    return localize(lm, pairs, scores, parts=PARTS, draws=0)


def random_scores(loc, seed=0):
    rng = np.random.default_rng(seed)
    return {site: rng.normal(size=len(size)) for site, size in loc.unit_sizes().items()}


def chosen_units(scores, count, absolute=False):
    """Return, by site, whether a unit is one of the `count` highest of all sites."""
    key = abs if absolute else float
    ranked = sorted(((key(x), site, i) for site, row in scores.items() for i, x in enumerate(row)), reverse=True)
    chosen = {site: np.zeros(len(row), bool) for site, row in scores.items()}
    for _, site, i in ranked[:count]:
        chosen[site][i] = True
    return chosen


def columns_of(lm, units):
    return {site: np.repeat(row, lm.at(site).width) for site, row in units.items()}


def test_both_ends_and_a_point_of_every_order_by_hand(any_family):
    """The units of MLPs and attentions are ranked together, and replaced by their mean over the neutral texts."""
    lm = any_family
    pairs, mean = pairs_that_gain(lm)
    loc = located(lm)
    scores = random_scores(loc)
    result = faithfulness(lm, pairs, loc, {"own": scores}, shares=(0.3, 1), controls=0, draws=50)
    rows = [prefix_and_tokens(lm, i, pairs) for i in range(0, 8, 2)]

    def by_mean(site, x):
        return mean[site].expand_as(x)

    intact = np.mean([difference_with(lm, row) for row in rows])
    empty = np.mean([difference_with(lm, row, by_mean) for row in rows])
    assert result.n_pairs == result.n_left_out == 4
    assert result.intact == pytest.approx(intact, rel=1e-3, abs=1e-4)
    assert result.empty == pytest.approx(empty, rel=2e-3, abs=2e-4)
    assert result.n_units == sum(map(len, scores.values()))
    assert result.counts == (int(0.3 * result.n_units), result.n_units)
    for order, ends in (("kept", (1, 1)), ("kept_absolute", (1, 1)), ("removed", (0, 0))):
        chosen = columns_of(lm, chosen_units(scores, result.counts[0], order == "kept_absolute"))
        replaced = chosen if order == "removed" else {site: ~row for site, row in chosen.items()}
        expected = np.mean([difference_with(lm, row, by_mean, replaced) for row in rows])
        curve = result.curve("own", order)
        assert curve.difference[0] == pytest.approx(expected, rel=2e-3, abs=5e-4), order
        f = (expected - empty) / (intact - empty)
        assert curve.faithfulness[0] == pytest.approx(f, rel=5e-3, abs=5e-3)
        assert (curve.faithfulness[-1], curve.low[-1], curve.high[-1]) == pytest.approx((ends[0], *ends))


def test_values_of_other_pairs_are_those_of_the_intact_model(tiny):
    """With by="resample", all parts take their values from one text, in which nothing is replaced."""
    usable = first_differences(tiny, PAIRS).usable
    rows = [prefix_and_tokens(tiny, i) for i in USABLE]
    gaps = []
    for row, j in zip(rows, PairReader(tiny, usable, "resample", "first", seed=0, skip_first=True).other, strict=True):
        donor = keys_of(tiny, rows[j][0])
        place = torch.arange(row[0].shape[1]).clamp_max(rows[j][0].shape[1] - 1)
        empty = difference_with(tiny, row, lambda site, x, donor=donor, place=place: donor[site][place])
        gaps.append(difference_with(tiny, row) - empty)
    pairs = paired([turned(i, gap) for i, gap in zip(USABLE, gaps, strict=True)])
    result = faithfulness(tiny, pairs, located(tiny), by="resample", shares=ONE, controls=0, draws=50)
    assert result.intact - result.empty == pytest.approx(np.abs(gaps).mean(), rel=2e-3)


@pytest.fixture
def two_units():
    """A model with one MLP of two neurons, whose activations are 1 and 2 in every text."""
    lm = random_model("gpt2", num_hidden_layers=1, n_layer=1, n_inner=2)
    mlp = lm.hf.transformer.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight.zero_()
        mlp.c_fc.bias.copy_(inverse_of(mlp.act, torch.tensor([1.0, 2.0])))
    return lm


def inverse_of(function, y):
    x = y.clone()
    for _ in range(200):
        x = x - (function(x) - y) / 2
    torch.testing.assert_close(function(x), y)
    return x


def differences_of_two(lm, pairs):
    """Return D of each pair without neurons, with either neuron, and with both: each adds a multiple of its row."""
    block = lm.hf.transformer.h[0]
    table = []
    for i in range(len(pairs.toxic)):
        ids, toxic, neutral = prefix_and_tokens(lm, i, pairs)
        kept = []
        handle = block.register_forward_hook(lambda module, args, out, kept=kept: kept.append(out))
        with torch.no_grad():
            lm.hf(input_ids=ids)
            handle.remove()
            out = (kept[0][0] if isinstance(kept[0], tuple) else kept[0]).reshape(-1, lm.d_model)[-1]
            rows = torch.tensor([1.0, 2.0])[:, None] * block.mlp.c_proj.weight
            bases = [out - rows.sum(0), out - rows[1], out - rows[0], out]
            logits = [lm.hf.lm_head(lm.hf.transformer.ln_f(base)) for base in bases]
        table.append([difference_of(x, toxic, neutral).item() for x in logits])
    return np.array(table)


def pairs_of_two(lm):
    """Return pairs of which each gains from the two neurons."""
    table = differences_of_two(lm, paired([turned(i, 1) for i in USABLE]))
    return paired([turned(i, row[3] - row[0]) for i, row in zip(USABLE, table, strict=True)])


def test_the_areas_of_two_neurons_by_hand(two_units):
    pairs = pairs_of_two(two_units)
    table = differences_of_two(two_units, pairs)
    empty, first, second, intact = table.mean(0)
    f = [(x - empty) / (intact - empty) for x in (first, second)]
    loc = localize(two_units, pairs, ("activation",), parts=("mlp",), draws=0)
    scores = {"first": {0: [3, 1]}, "second": {0: [1, 3]}, "negative": {0: [-3, 1]}}
    result = faithfulness(two_units, pairs, loc, scores, by="zero", shares=ONE, controls=0, draws=400, skip_first=False)
    assert result.n_units == 2 and result.counts == (1, 2)
    assert result.n_forward_passes == 4  # none, both, and either neuron
    kept = {"first": f[0], "second": f[1], "negative": f[1]}
    absolute = {"first": f[0], "second": f[1], "negative": f[0]}
    removed = {"first": f[1], "second": f[0], "negative": f[0]}
    assert abs(f[0] - f[1]) > 0.1
    for name in scores:
        assert result.cpr[name].value == pytest.approx((kept[name] + 1) / 4, abs=1e-3)
        assert result.cmd[name].value == pytest.approx(abs(1 - absolute[name]) / 4, abs=1e-3)
        assert result.curve(name, "removed").area.value == pytest.approx(removed[name] / 4, abs=1e-3)
        assert result.cpr[name].controls == () and np.isnan(result.cpr[name].above)
    drawn = table[np.random.default_rng(0).integers(0, 4, (4000, 4))].mean(1)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / (drawn[:, 3] - drawn[:, 0]), (0.025, 0.975))
    curve = result.curve("first")
    assert (curve.low[0], curve.high[0]) == pytest.approx((low, high), abs=0.1 * (high - low) + 1e-6)
    assert result.cpr["first"].ci == pytest.approx(((curve.low[0] + 1) / 4, (curve.high[0] + 1) / 4), abs=1e-6)
    low, high = np.quantile(drawn[:, 3] - drawn[:, 0], (0.025, 0.975))
    assert result.gap_ci == pytest.approx((low, high), rel=0.1)


def test_the_area_is_the_trapezoid_on_a_linear_scale(tiny):
    pairs, _ = pairs_that_gain(tiny)
    loc = located(tiny)
    result = faithfulness(tiny, pairs, loc, {"own": random_scores(loc)}, shares=(0.1, 0.4, 1), controls=0, draws=20)
    f = result.curve("own").faithfulness
    assert result.cpr["own"].value == pytest.approx(0.3 * (f[0] + f[1]) / 2 + 0.6 * (f[1] + f[2]) / 2)
    g = abs(1 - result.curve("own", "kept_absolute").faithfulness)
    assert result.cmd["own"].value == pytest.approx(0.3 * (g[0] + g[1]) / 2 + 0.6 * (g[1] + g[2]) / 2)


def test_exact_effects_order_units_better_than_the_reverse():
    lm = random_model("gpt2", scale=2.0, n_inner=16)
    pairs, _ = pairs_that_gain(lm)
    loc = located(lm)
    units = [(site, i) for site, size in loc.unit_sizes().items() for i in range(len(size))]
    effects = dict(zip(units, patch(lm, pairs, units, draws=0).effect, strict=True))
    exact = {site: np.array([effects[site, i] for i in range(len(size))]) for site, size in loc.unit_sizes().items()}
    scores = {"exact": exact, "reverse": {site: -row for site, row in exact.items()}}
    result = faithfulness(lm, pairs, loc, scores, shares=(0.1, 0.3, 1), draws=50, controls=2)
    for name, sign in (("exact", 1), ("reverse", -1)):
        assert sign * result.cpr[name].above > 0
        assert sign * (result.curve(name, "removed").area.above) < 0
    assert result.cmd["exact"] == result.cmd["reverse"]
    assert result.cpr["exact"].value > 1 > result.cpr["reverse"].value
    assert result.cpr["exact"].above == pytest.approx(result.cpr["exact"].value - np.mean(result.cpr["exact"].controls))
    assert result.cpr["exact"].above_ci[0] <= result.cpr["exact"].above <= result.cpr["exact"].above_ci[1]


def test_the_number_of_passes_is_reported_and_equal_sets_are_read_once(tiny, monkeypatch):
    pairs, _ = pairs_that_gain(tiny)
    loc = located(tiny)
    read = []
    original = PairBatch.difference
    monkeypatch.setattr(PairBatch, "difference", lambda batch: read.append(len(batch.pairs)) or original(batch))
    own = {"own": random_scores(loc)}
    result = faithfulness(tiny, pairs, loc, own, shares=(0.2, 0.6, 1), controls=2, draws=10)
    assert read == [4] * result.n_forward_passes  # the four pairs fit into one batch
    assert result.n_forward_passes == 2 + 2 * 3 * (1 + 2)
    again = faithfulness(tiny, pairs, loc, {**own, "same": own["own"]}, shares=(0.2, 0.6, 1), controls=2, draws=10)
    assert again.n_forward_passes == result.n_forward_passes
    positive = {"own": {site: abs(row) for site, row in own["own"].items()}}
    fewer = faithfulness(tiny, pairs, loc, positive, shares=(0.2, 0.6, 1), controls=2, draws=10)
    assert fewer.n_forward_passes == 2 + 2 * 2 * (1 + 2)  # kept and kept_absolute are the same


def test_sites_are_replaced_as_a_whole(tiny):
    pairs, _ = pairs_that_gain(tiny)
    loc = located(tiny)
    sites = loc.sites()
    scores = {"own": {site: i for i, site in enumerate(sites)}}  # the last site first
    result = faithfulness(tiny, pairs, loc, scores, level="site", shares=(1 / len(sites), 1), draws=20)
    curve = result.curve("own", "removed")
    effect = patch(tiny, pairs, sites[-1:], "mean", draws=0).effect[0]
    assert (result.n_units, result.counts) == (len(sites), (1, len(sites)))
    assert result.intact - curve.difference[0] == pytest.approx(effect, rel=1e-3, abs=1e-5)
    named = faithfulness(tiny, pairs, loc, ["activation"], level="site", shares=(1 / len(sites), 1), draws=20)
    (top,) = loc.top_sites("activation", 1)
    effect = patch(tiny, pairs, [top], "mean", draws=0).effect[0]
    assert named.intact - named.curve("activation", "removed").difference[0] == pytest.approx(effect, abs=1e-4)


def test_experts_are_replaced_as_sites_only():
    lm = random_model("mixtral")
    loc = localize(lm, PAIRS, ("activation",), parts=("expert",), draws=0)
    with pytest.raises(ToxlocError, match="give level='site'"):
        faithfulness(lm, PAIRS, loc)
    with pytest.raises(ToxlocError, match="by='mean' or by='zero'"):
        faithfulness(lm, PAIRS, loc, level="site", by="resample")
    for orders in itertools.product((1, -1), repeat=4):
        pairs = paired([turned(i, gain) for i, gain in zip(USABLE, orders, strict=True)])
        try:
            result = faithfulness(lm, pairs, loc, level="site", by="zero", shares=ONE, draws=20)
        except ToxlocError:
            continue
        assert result.curve("activation").faithfulness[-1] == pytest.approx(1)
        break
    else:
        pytest.fail("no order of the sides has a gap above 0")


def test_only_pairs_whose_toxic_text_is_preferred_are_read(tiny):
    def by_zero(site, x):
        return torch.zeros_like(x)

    rows = [prefix_and_tokens(tiny, i) for i in USABLE]
    intact = np.array([difference_with(tiny, row) for row in rows])
    empty = np.array([difference_with(tiny, row, by_zero) for row in rows]) * np.sign(intact)
    kept = np.abs(intact) > empty  # the sides of the other pairs are exchanged, so that the model prefers the neutral
    assert 2 <= kept.sum() < 4
    pairs = paired([turned(i, d if keep else -d) for i, d, keep in zip(USABLE, intact, kept, strict=True)])
    loc = located(tiny)
    result = faithfulness(tiny, pairs, loc, by="zero", only_preferred=True, shares=ONE, controls=0, draws=50)
    assert (result.n_pairs, result.n_left_out) == (kept.sum(), 4 - kept.sum())
    assert result.intact == pytest.approx(np.abs(intact)[kept].mean(), rel=1e-3)
    assert result.empty == pytest.approx(empty[kept].mean(), rel=2e-3, abs=1e-4)
    none = paired([turned(i, -d) for i, d in zip(USABLE, intact, strict=True)])
    with pytest.raises(ToxlocError, match="prefers the toxic text in 0 of 4 pairs"):
        faithfulness(tiny, none, loc, by="zero", only_preferred=True)


def test_a_model_without_a_gap_is_refused(tiny):
    pairs, _ = pairs_that_gain(tiny)
    loc = located(tiny)
    swapped = ContrastSet(pairs.neutral, pairs.toxic, paired=True)
    with pytest.raises(ToxlocError, match=r"in the intact model and .* with every unit replaced; .* is not above 0"):
        faithfulness(tiny, swapped, loc, by="zero", over="first")
    both = ContrastSet(
        [text for i in USABLE for text in (PAIRS.toxic[i], PAIRS.neutral[i])],
        [text for i in USABLE for text in (PAIRS.neutral[i], PAIRS.toxic[i])],
        paired=True,
    )
    with pytest.raises(ToxlocError, match="only_preferred=True"):
        faithfulness(tiny, both, loc)


def test_batches_do_not_change_the_result_and_the_model_is_unchanged(tiny, monkeypatch):
    pairs, _ = pairs_that_gain(tiny)
    loc, before = located(tiny), bits(tiny)
    whole = faithfulness(tiny, pairs, loc, shares=ONE, controls=1, draws=50)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    single = faithfulness(tiny, pairs, loc, shares=ONE, controls=1, draws=50)
    assert whole.n_forward_passes == single.n_forward_passes
    for a, b in zip(whole.curves, single.curves, strict=True):
        np.testing.assert_allclose(a.faithfulness, b.faithfulness, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(a.controls, b.controls, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(a.low, b.low, rtol=1e-3, atol=1e-3)
    assert same_bits(before, tiny)


def test_the_seed_determines_the_controls_only(tiny):
    pairs, _ = pairs_that_gain(tiny)
    loc = located(tiny)
    first, again, other = (
        faithfulness(tiny, pairs, loc, shares=ONE, controls=2, draws=20, seed=seed).curve("activation")
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.controls, again.controls)
    assert not np.array_equal(first.controls, other.controls)
    np.testing.assert_array_equal(first.faithfulness, other.faithfulness)
    assert first.area == again.area


def test_the_tables_have_a_row_per_share_and_per_area(tiny):
    pairs, _ = pairs_that_gain(tiny)
    loc = located(tiny, scores=("activation", "attribution"))
    result = faithfulness(tiny, pairs, loc, shares=ONE, controls=2, draws=20)
    table = result.table()
    assert result.scores == ("activation", "attribution")
    assert table[["score", "order", "share"]].values.tolist() == [
        [score, order, share]
        for score in result.scores
        for order in ("kept", "kept_absolute", "removed")
        for share in ONE
    ]
    row = table.query("score == 'attribution' and order == 'removed'").iloc[0]
    curve = result.curve("attribution", "removed")
    assert (row.units, row.difference, row.faithfulness) == (
        result.counts[0],
        curve.difference[0],
        curve.faithfulness[0],
    )
    assert row.controls == pytest.approx(curve.controls[:, 0].mean())
    areas = result.areas()
    assert areas.measure.tolist() == ["CPR", "CMD", "area"] * 2
    assert areas.above_controls[3] == pytest.approx(areas.value[3] - np.mean(result.cpr["attribution"].controls))
    assert areas.controls[3] == pytest.approx(np.mean(result.cpr["attribution"].controls))
    with pytest.raises(ToxlocError, match="no curve of 'auroc'"):
        result.curve("auroc")


def test_the_default_shares_are_those_of_mib(tiny):
    pairs, _ = pairs_that_gain(tiny)
    result = faithfulness(tiny, pairs, located(tiny), controls=0, draws=10)
    assert result.shares == SHARES == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    assert result.counts[:4] == (0, 0, 0, int(0.01 * result.n_units))
    assert result.curve("activation").faithfulness[0] == 0


def test_own_scores_and_models_without_transformerlens(tiny):
    pairs, _ = pairs_that_gain(tiny)
    modules = LoadedModel.from_hf(tiny.hf, tiny.tokenizer, "modules", hooks="modules")
    loc = located(tiny)
    results = [faithfulness(lm, pairs, loc, shares=(0.3, 1), controls=1, draws=10) for lm in (tiny, modules)]
    for a, b in zip(results[0].curves, results[1].curves, strict=True):
        np.testing.assert_allclose(a.faithfulness, b.faithfulness, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ["auroc"]}, "'auroc' was not computed; choose from activation"),
        ({"scores": []}, "There is no score; choose from activation"),
        ({"scores": "activation"}, "give a list"),
        ({"scores": {"own": {0: [1.0, 2.0]}}}, r"'own' does not give \d+ finite number\(s\) for layer 0"),
        ({"shares": []}, r"shares=\[\]: give at least 2 different numbers"),
        ({"shares": [0.5]}, "at least 2"),
        ({"shares": [0.0, 1]}, "above 0"),
        ({"shares": [0.1, 2]}, "at most 1"),
        ({"shares": ["a", 1]}, "at most 1"),
        ({"level": "head"}, "level='head': choose one of unit, site"),
        ({"by": "counterfactual"}, "by='counterfactual': choose one of mean, zero, resample"),
        ({"over": "all"}, "over='all': choose one of first, ending"),
        ({"draws": 0}, "draws=0"),
        ({"controls": -1}, "controls=-1"),
        ({"pairs": ContrastSet(PAIRS.toxic, PAIRS.neutral)}, "is not paired"),
        ({"pairs": ContrastSet(PAIRS.toxic[:1], PAIRS.neutral[:1], paired=True)}, "Only 1 of the 1 pairs"),
        ({"loc": "attribution"}, "give a value of the type Localization"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_end_in_a_sentence(tiny, options, message):
    arguments = {"pairs": PAIRS, "loc": located(tiny), **options}
    with pytest.raises(ToxlocError, match=message):
        faithfulness(tiny, **arguments)


def test_a_localization_of_another_model_is_refused(tiny):
    loc = located(tiny)
    other = Localization(loc.by_part, loc.about)
    with pytest.raises(ToxlocError, match=r"Localize random-gpt2 first"):
        faithfulness(random_model("gpt2", num_hidden_layers=1, n_layer=1), PAIRS, other)


def test_scores_by_site_take_numbers_as_sites(tiny):
    loc = located(tiny)
    assert loc.unit_scores("activation")[Site(0)].shape == loc.unit_sizes()[0].shape
    assert set(loc.unit_scores("activation")) == set(loc.sites())
