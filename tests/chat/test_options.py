from __future__ import annotations

import pytest

from sartor.chat.options import SamplingOptions, settle
from sartor.errors import ConfigurationError


def test_a_model_that_says_nothing_gets_the_documented_defaults() -> None:
    sampling = settle(SamplingOptions(), {"eos_token_id": 2, "do_sample": None})
    assert (sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k) == (True, 0.7, 0.9, 0)
    assert (sampling.repetition_penalty, sampling.max_new_tokens) == (1.0, 512)


def test_the_models_own_settings_come_before_defaults_and_what_was_asked_before_both() -> None:
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 99}
    sampling = settle(SamplingOptions(temperature=0.2), own)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.2, 0.95, 50)
    assert (sampling.repetition_penalty, sampling.max_new_tokens) == (1.1, 99)
    asked = settle(SamplingOptions(top_k=3, repetition_penalty=1.0, max_new_tokens=5), own)
    assert (asked.top_k, asked.repetition_penalty, asked.max_new_tokens) == (3, 1.0, 5)


def test_a_model_that_says_greedy_is_greedy_until_sampling_is_asked_for() -> None:
    assert not settle(SamplingOptions(), {"do_sample": False}).do_sample
    assert settle(SamplingOptions(top_p=0.5), {"do_sample": False}).do_sample


@pytest.mark.parametrize("options", [SamplingOptions(greedy=True), SamplingOptions(temperature=0)])
def test_greedy_overrides_a_model_that_samples(options: SamplingOptions) -> None:
    own = {"do_sample": True, "temperature": 0.6}
    assert not settle(options, own).do_sample
    assert str(settle(options, own)) == "greedy, at most 512 tokens"


def test_what_is_done_can_be_said_in_words() -> None:
    own = {"repetition_penalty": 1.2}
    assert str(settle(SamplingOptions(top_k=5), own)) == (
        "temperature 0.7, top_p 0.9, top_k 5, repetition penalty 1.2, at most 512 tokens"
    )


def test_all_values_out_of_range_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        SamplingOptions(temperature=-1, top_p=0, top_k=-2, repetition_penalty=0, max_new_tokens=0, seed=-1, greedy=True)
    names = ["temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed", "greedy"]
    assert [problem.split()[0] for problem in caught.value.problems] == names


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_temperature_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match="temperature"):
        SamplingOptions(temperature=value)
