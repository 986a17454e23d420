import json

import pytest

from toxloc import ToxlocError
from toxloc.sweeps.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out")


def test_a_cell_is_open_then_failed_then_finished(plan, store):
    first, second = plan.cells[:2]
    assert store.open_cells(plan.cells[:2]) == [first, second]
    store.fail(first, ToxlocError("No luck."))
    assert (store.has_failed(first), store.is_done(first), store.open_cells(plan.cells[:2])) == (True, False, [second])
    assert store.failure(first)["error"] == "No luck."
    store.finish(first, {"figure": 1.5})
    assert (store.has_failed(first), store.is_done(first)) == (False, True)
    assert list((store.folder / "failed").iterdir()) == []
    assert store.result(first)["figure"] == 1.5
    assert store.result(first)["settings"] == first.settings


def test_another_error_is_named_by_its_kind_and_has_its_traceback(plan, store):
    try:
        {}["nowhere"]
    except KeyError as error:
        store.fail(plan.cells[0], error)
    failure = store.failure(plan.cells[0])
    assert failure["error"] == "KeyError: 'nowhere'"
    assert '{}["nowhere"]' in failure["traceback"]


def test_the_verdict_both_of_older_versions_is_read_as_all(plan, store):
    cell = plan.cells[0]
    rates = {"any": {"rate": 0.3}, "both": {"rate": 0.1}}
    written = {**cell.to_dict(), "toxicity": rates, "baseline": {"toxicity": rates}, "change": dict.fromkeys(rates)}
    (store.folder / "cells" / f"{cell.id}.json").write_text(json.dumps(written))
    result = store.result(cell)
    assert result["toxicity"] == result["baseline"]["toxicity"] == {"any": {"rate": 0.3}, "all": {"rate": 0.1}}
    assert result["change"] == {"any": None, "all": None}


def test_a_damaged_cell_is_named(plan, store):
    cell = plan.cells[0]
    (store.folder / "cells" / f"{cell.id}.json").write_text('{"toxicity": ')
    with pytest.raises(ToxlocError, match=f"{cell.id}.json is not valid JSON"):
        store.result(cell)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToxlocError, match="choose another folder"):
        Store(tmp_path / "file")


def test_what_killed_workers_left_half_written_is_removed(plan, store):
    cell = plan.cells[0]
    store.finish(cell, {})
    (store.folder / "cells" / f".{cell.id}.json.12345678.partial").write_text("{half")
    (store.folder / "baselines" / ".x.12345678.partial").mkdir()
    (store.folder / ".results.csv.12345678.partial").write_text("a,b")
    store.remove_unfinished()
    assert [path.name for path in store.folder.rglob("*.*")] == [f"{cell.id}.json"]
