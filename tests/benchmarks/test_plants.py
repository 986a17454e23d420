import pytest
import torch

from benchmarks.plants import Plant, planted_model, plants
from toxloc import ToxlocError
from toxloc.models.sites import Site


@pytest.fixture(scope="module")
def clean():
    return dict(planted_model("clean").hf.named_parameters())


@pytest.mark.parametrize("name", ["layer6", "neurons3", "head5", "attention3", "both1-4"])
def test_a_plant_differs_from_the_clean_model_where_the_truth_says_and_nowhere_else(clean, name):
    plant = plants()[name]
    places = {
        f"h.{site.layer}.{'mlp' if site.part == 'mlp' else 'attn'}.": units for site, units in plant.sites.items()
    }
    for key, value in planted_model(name).hf.named_parameters():
        changed = value != clean[key]
        units = next((units for place, units in places.items() if place in key), ())
        if units == ():
            assert not changed.any(), key
        elif units is None:
            assert changed.float().mean() > 0.9
        elif key.endswith("c_proj.weight"):
            width = len(value) // (4 if "attn" in key else 1024)
            assert (changed.any(1).nonzero()[:, 0] // width).unique().tolist() == list(units)
        elif not key.endswith("c_proj.bias"):
            columns = changed.reshape(-1, changed.shape[-1]).any(0).nonzero()[:, 0]
            of_unit = columns % 256 // 64 if "attn" in key else columns
            assert of_unit.unique().tolist() == list(units)


def test_the_truth_of_a_plant_is_read_as_it_was_written():
    for entry in (
        {"layer": 3, "neurons": None},
        {"layer": 3, "neurons": [1, 5]},
        {"sites": {"1.mlp": None, "4.attention": None}},
        {"sites": {"4.attention": [2]}},
    ):
        assert Plant.of("name", entry).to_dict() == entry
    assert Plant.of("a", {"layer": 3, "neurons": [1, 5]}).units == ((Site(3), 1), (Site(3), 5))
    assert Plant.of("a", {"sites": {"1.mlp": None, "4.attention": None}}).units == ()


def test_an_unknown_plant_is_named():
    with pytest.raises(ToxlocError, match=r"'layer9'; choose one of layer0"):
        planted_model("layer9")


def test_weights_copied_into_the_clean_model_make_the_planted_model():
    plant = Plant("a", {Site(2, "attention"): (1, 3)})
    lm = planted_model("clean")
    blocks = lm.hf.transformer.h
    doubled = {key: 2 * weight.float() for key, weight in plant.weights(blocks).items()}
    before = blocks[2].attn.c_proj.weight.detach().clone()
    plant.copy_into(blocks, doubled)
    factors = (blocks[2].attn.c_proj.weight / before).nanmean(1)
    expected = torch.tensor([1.0, 2.0, 1.0, 2.0]).repeat_interleave(64)
    torch.testing.assert_close(factors, expected, atol=2e-3, rtol=0)
