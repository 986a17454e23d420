"""Ctrl-C at every line of applying and reverting: an edit is applied and known as such, or gone without a trace."""

import contextlib
import copy
import pickle
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

import toxloc
from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import (
    TRNE,
    AurA,
    Chain,
    ContrastSet,
    Damp,
    DirectionalAblation,
    LinearAcT,
    Meow2X,
    ProFS,
    Steering,
    ToxlocError,
    ValueVector,
    load_intervention,
)

pytestmark = pytest.mark.usefixtures("ctrl_c")
TRACED = (str(Path(toxloc.__file__).parent), contextlib.__file__)
PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
EDITS = {
    "trne": lambda lm: TRNE.fit(lm, PAIRS, norm=0.05, sites="all"),
    "meow2x, hooks": lambda lm: Meow2X(neurons=[(0, 3), (1, 5)], layers=[1], scale=0.5),
    "meow2x, weights": lambda lm: Meow2X(neurons=[(0, 3), (1, 5)], layers=[1], scale=0.5, mode="weights"),
    "aura, hooks": lambda lm: AurA.fit(lm, PAIRS, strength=0.5),
    "aura, weights": lambda lm: AurA.fit(lm, PAIRS, strength=0.5).baked(),
    "damp": lambda lm: Damp.fit(lm, PAIRS, k=5, scale=0.5),
    "linear-act": lambda lm: LinearAcT.fit(lm, PAIRS, strength=0.5),
    "value-vector": lambda lm: ValueVector.fit(lm, PAIRS, strength=0.5),
    "profs": lambda lm: ProFS.fit(lm, PAIRS, strength=0.5, k=1),
    "steering": lambda lm: Steering.fit(lm, PAIRS, strength=0.5),
    "ablation, hooks": lambda lm: DirectionalAblation.fit(lm, PAIRS, strength=0.5),
    "ablation, weights": lambda lm: DirectionalAblation.fit(lm, PAIRS, strength=0.5).baked(),
    "chain": lambda lm: Chain([Meow2X(layers=[0], scale=0.5), Steering.fit(lm, PAIRS, strength=0.5)]),
}


@pytest.fixture(scope="module")
def lm():
    model = random_model()
    with Meow2X(layers=[0], scale=0.5).applied(model), torch.no_grad():
        model.hf(torch.tensor([[1, 2]]))  # transformers adds its hooks at the first forward pass
        model.forward(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.long))
    return model


@pytest.fixture(scope="module", params=EDITS)
def edit(request, lm):
    return EDITS[request.param](lm)


def hooks(lm):
    """All hooks of both trees."""
    modules = [*lm.hf.modules(), *lm.hooked.modules()]
    return [id(hook) for m in modules for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]


class Interrupted:
    """Send Ctrl-C at chosen lines of toxloc's code that run in the block; count the lines."""

    def __init__(self, *at):
        self.at, self.lines = set(at), 0

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(TRACED):  # nor code that the type checker makes, which has no file
            return None
        if event in ("line", "return"):
            self.lines += 1
            if self.lines in self.at:
                signal.raise_signal(signal.SIGINT)
        return self.trace

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)


def lines_of(action):
    with Interrupted() as counter:
        action()
    return counter.lines


def every(count, step):
    return range(1, count, step)


def check_lines(action, check, step, twice):
    """Interrupt an action at each `step`-th line, and perhaps once more some lines later; check after each."""
    total = lines_of(action)
    assert total > 20
    check()
    for line in every(total, step):
        with pytest.raises(KeyboardInterrupt), Interrupted(line, *([line + twice] if twice else [])):
            action()
            raise KeyboardInterrupt  # the signal came after the last line of the action
        check()


STEPS = [pytest.param(150, id="some lines"), pytest.param(1, id="every line", marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("twice", [0, 1, 7])
@pytest.mark.parametrize("step", STEPS)
def test_a_block_leaves_nothing(lm, edit, step, twice):
    before, hooks_before = bits(lm), hooks(lm)

    def action():
        with edit.applied(lm):
            pass

    def check():
        assert lm.interventions == []
        assert same_bits(before, lm)
        assert hooks(lm) == hooks_before
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        action()  # no signal is left over to interrupt a later block

    check_lines(action, check, step, twice)


@pytest.mark.parametrize("step", STEPS)
def test_an_edit_is_applied_or_not_and_can_be_reverted(lm, edit, step):
    before, hooks_before = bits(lm), hooks(lm)

    def action():
        edit.apply(lm)
        edit.revert(lm)

    def check():
        if lm.interventions:
            assert lm.interventions == [edit]
            edit.revert(lm)
        assert same_bits(before, lm)
        assert hooks(lm) == hooks_before

    check_lines(action, check, step, 0)


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_look_at_the_unedited_model_leaves_the_edits_applied(lm, edit, step):
    first = Meow2X(neurons=[(0, 1)], scale=0.25, mode="weights")
    # A signal that arrives in the last instructions of an inner block is delivered at the end of the outer block.
    with contextlib.suppress(KeyboardInterrupt), first.applied(lm), edit.applied(lm):
        before, count = bits(lm), len(hooks(lm))

        def action():
            with lm.unedited():
                pass

        def check():
            assert lm.interventions == [first, edit]
            assert same_bits(before, lm)
            assert len(hooks(lm)) == count

        check_lines(action, check, step, 0)
    assert lm.interventions == []


def test_two_threads_do_not_apply_one_edit_twice(lm, edit):
    before, hooks_before = bits(lm), hooks(lm)
    barrier, errors = threading.Barrier(2), []

    def work():
        for _ in range(20):
            barrier.wait()
            try:
                edit.apply(lm)
            except ToxlocError as error:
                errors.append(str(error))
            barrier.wait()
            if threading.current_thread().name == "first" and lm.interventions:
                edit.revert(lm)

    threads = [threading.Thread(target=work, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 20
    assert all("is applied to random-gpt2 already" in error for error in errors)
    assert lm.interventions == []
    assert same_bits(before, lm)
    assert hooks(lm) == hooks_before


def test_a_copy_of_an_applied_edit_is_applied_to_nothing(lm, edit, tmp_path):
    with edit.applied(lm):
        for twin in (copy.deepcopy(edit), copy.copy(edit), pickle.loads(pickle.dumps(edit))):
            assert twin.fingerprint == edit.fingerprint
            with pytest.raises(ToxlocError, match="is not applied"):
                twin.revert(lm)
    edit.save(tmp_path / "e")
    assert load_intervention(tmp_path / "e").fingerprint == edit.fingerprint


def test_models_are_copied_unedited_or_refuse(lm):
    twin = copy.deepcopy(lm)
    assert same_bits(bits(lm), twin)
    assert twin.fingerprint == lm.fingerprint
    assert not {p.data_ptr() for p in lm.hf.parameters()} & {p.data_ptr() for p in twin.hf.parameters()}
    edit, before = Meow2X(layers=[0], scale=0.5, mode="weights"), bits(lm)
    with edit.applied(lm):
        with pytest.raises(ToxlocError, match=r"revert it first.*lm\.copy\(\)"):
            copy.deepcopy(lm)
        twin = lm.copy()
        assert lm.interventions == [edit]
        assert twin.interventions == []
    assert same_bits(before, twin)
    with edit.applied(twin):
        assert not same_bits(before, twin)
        assert same_bits(before, lm)
    with pytest.raises(ToxlocError, match=r"cannot be pickled.*load_model"):
        pickle.dumps(lm)
