from concurrent.futures import ThreadPoolExecutor

import pytest

from toxloc import ToxlocError
from toxloc.integrations.judges import get_judges
from toxloc.integrations.waiting_texts import WaitingTexts

TEXTS = ["one", "three", "fifteen"]


def test_waiting_texts_are_judged_in_one_batch(batches):
    waiting = WaitingTexts(get_judges("counting"))
    for text in TEXTS:
        waiting.add(text)
    scores = [waiting.judged(text)["counting"].scores.item() for text in TEXTS]
    assert scores == [0.03, 0.05, 0.07]
    assert [sorted(batch) for batch in batches] == [sorted(TEXTS)]


def test_threads_get_the_scores_of_their_texts(batches):
    waiting = WaitingTexts(get_judges("counting"))
    texts = ["a" * n for n in range(1, 60)]

    def judged(text):
        waiting.add(text)
        return waiting.judged(text)["any"].scores.item()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(judged, texts)) == [len(text) / 100 for text in texts]
    assert sorted(text for batch in batches for text in batch) == texts  # each text once


def test_a_failure_reaches_every_text(broken):
    waiting = WaitingTexts(get_judges("broken"))
    for text in TEXTS:
        waiting.add(text)
    for text in TEXTS:
        with pytest.raises(ToxlocError, match=broken):
            waiting.judged(text)
