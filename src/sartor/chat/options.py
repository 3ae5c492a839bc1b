"""How an answer is drawn: what was asked for, and what follows from it together with the model's own settings.

Kept free of heavy libraries, so that the command line can refuse a wrong value before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sartor.errors import ConfigurationError

DEFAULT_MAX_NEW_TOKENS = 512
DEFAULTS: Mapping[str, float] = {"temperature": 0.7, "top_p": 0.9, "top_k": 0}
"""Where neither the user nor the model's generation_config says anything."""
_TRANSFORMERS: Mapping[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
"""What transformers' `generate` fills in for a field that neither the caller nor the model's file names."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What was asked for.  None leaves a value to the model's generation_config, and after that to Sartor's defaults.

    Raises ConfigurationError, with all problems at once, for values out of range or that contradict each other.
    """

    temperature: float | None = None
    """0 means greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 means all tokens."""
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    """None: different each time.  The same seed, conversation and options give the same answer."""
    greedy: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature is {self.temperature}: it must be 0 (greedy) or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}: it must be more than 0 and at most 1 (all tokens).")
        if self.top_k is not None and self.top_k < 0:
            problems.append(f"top_k is {self.top_k}: it must be 0 (all tokens) or more.")
        if self.repetition_penalty is not None and not (
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0
        ):
            problems.append(f"repetition_penalty is {self.repetition_penalty}: it must be more than 0; 1 means none.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            problems.append(f"max_new_tokens is {self.max_new_tokens}: it must be 1 or more.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            problems.append(f"seed is {self.seed}: it must be 0 or more and below 2**63.")
        if self.greedy and (self.temperature or self.top_p is not None or self.top_k is not None):
            problems.append("greedy takes the most likely token each time: leave out temperature, top_p and top_k.")
        if problems:
            raise ConfigurationError(problems)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is done: every value settled."""

    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_new_tokens: int

    def __str__(self) -> str:
        parts = ["greedy"]
        if self.do_sample:
            parts = [f"temperature {self.temperature:g}"]
            parts += [f"top_p {self.top_p:g}"] if self.top_p < 1 else []
            parts += [f"top_k {self.top_k}"] if self.top_k else []
        if self.repetition_penalty != 1:
            parts.append(f"repetition penalty {self.repetition_penalty:g}")
        return ", ".join([*parts, f"at most {self.max_new_tokens} tokens"])


def settle(options: SamplingOptions, own: Mapping[str, Any]) -> Sampling:
    """Combine what was asked for with `own`, the model's generation_config as a dict.

    The rule, first that applies: `greedy` or temperature 0 -> greedy.  A temperature, top_p or top_k was asked for ->
    sampling. The model's file says `do_sample: false` -> greedy; says `true`, or names a temperature, top_p or top_k ->
    sampling with its values, where what it leaves out is what transformers' `generate` takes.  It says nothing ->
    Sartor's defaults: temperature 0.7, top_p 0.9, all tokens.
    """
    model_says = {name: own[name] for name in DEFAULTS if own.get(name) is not None}
    asked = {name: value for name in DEFAULTS if (value := getattr(options, name)) is not None}
    defaults = _TRANSFORMERS if own.get("do_sample") or model_says else DEFAULTS
    values = {**defaults, **model_says, **asked}
    if options.greedy or options.temperature == 0:
        do_sample = False
    elif asked:
        do_sample = True
    else:
        do_sample = own.get("do_sample") is not False
    if not do_sample or values["temperature"] == 0:
        do_sample, values = False, {**_TRANSFORMERS}
    return Sampling(
        do_sample=do_sample,
        temperature=float(values["temperature"]),
        top_p=float(values["top_p"]),
        top_k=int(values["top_k"]),
        repetition_penalty=float(options.repetition_penalty or own.get("repetition_penalty") or 1.0),
        max_new_tokens=int(options.max_new_tokens or own.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS),
    )
