"""Drawing the next token: against the definitions, a token at a time."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.errors import UsageError
from hybridkit.runtime.generation import Sampling, draw, sampling_of, shares

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


def reference(logits, seen, how):
    """The probability of each token that may be drawn."""
    penalty = how.repetition_penalty
    moved = [
        (x if i not in seen else x / penalty if x > 0 else x * penalty) / how.temperature
        for i, x in enumerate(logits)
    ]
    order = sorted(range(len(moved)), key=lambda i: -moved[i])[: how.top_k or None]
    weight = {i: math.exp(moved[i] - moved[order[0]]) for i in order}
    total = sum(weight.values())
    kept, reached = {}, 0.0
    for i in order:
        if reached < how.top_p:
            kept[i] = weight[i]
        reached += weight[i] / total
    return {i: w / sum(kept.values()) for i, w in kept.items()}


@given(
    LOGITS,
    st.sets(st.integers(0, 11)),
    st.floats(0.1, 5),
    st.integers(0, 12),
    st.floats(0.05, 1),
    st.floats(0.5, 2),
)
def test_probabilities_are_those_of_the_definitions(logits, seen, temperature, top_k, top_p, penalty):
    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    seen = [i for i in seen if i < len(logits)]
    tokens, probabilities = shares(np.asarray(logits, np.float32), seen, how)
    assert (np.diff(probabilities) <= 0).all()
    found = dict(zip(tokens.tolist(), probabilities.tolist(), strict=True))
    wanted = reference(logits, seen, how)
    # at the edge of top-p one more or less is a matter of rounding
    for i in found.keys() & wanted.keys():
        if len(found) == len(wanted):
            assert found[i] == pytest.approx(wanted[i], rel=1e-3, abs=1e-6)
    assert abs(len(found) - len(wanted)) <= 1
    assert sum(found.values()) == pytest.approx(1)


class Evenly:
    """Numbers from 0 to 1, as far from each other as can be."""

    def __init__(self, count):
        self.count, self.given = count, 0

    def random(self):
        self.given += 1
        return (self.given - 0.5) / self.count


@given(LOGITS, st.floats(0.1, 5), st.floats(0.05, 1))
def test_tokens_are_drawn_as_often_as_their_probabilities_say(logits, temperature, top_p):
    array, how = np.asarray(logits, np.float32), Sampling(temperature=temperature, top_p=top_p)
    random, count = Evenly(200), 200
    drawn = [draw(array, [], how, random) for _ in range(count)]
    tokens, probabilities = shares(array, [], how)
    assert set(drawn) <= set(tokens.tolist())
    for token, probability in zip(tokens, probabilities, strict=True):
        assert abs(drawn.count(token) - count * probability) <= 1.01


@given(LOGITS)
def test_without_temperature_it_is_the_likeliest(logits):
    array = np.asarray(logits, np.float32)
    assert draw(array, [], Sampling(), Random(0)) == int(array.argmax())
    one = Sampling(temperature=1.0, top_k=1)
    assert array[draw(array, [], one, Random(0))] == array.max()


def test_a_seed_gives_the_same_token_again():
    array = np.linspace(0, 1, 50).astype(np.float32)
    drawn = [draw(array, [], Sampling(temperature=2.0), Random(5)) for _ in range(3)]
    assert len(set(drawn)) == 1
    many = {draw(array, [], Sampling(temperature=2.0), Random(n)) for n in range(50)}
    assert len(many) > 10


def test_what_is_said_comes_before_what_the_folder_says():
    search = {"do_sample": True, "temperature": 0.2, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
    assert sampling_of(search) == Sampling(temperature=0.2, top_k=50, top_p=0.9, repetition_penalty=1.1)
    assert sampling_of(search, temperature=0.0, top_k=None).temperature == 0
    assert sampling_of({**search, "do_sample": False}).temperature == 0
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}):
        with pytest.raises(UsageError):
            sampling_of({}, **wrong)
