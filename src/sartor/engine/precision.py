"""Three dtypes, kept apart: parameters (float32 masters for everything trained), compute, and float32 for losses.

In: a model in whatever dtype it arrived, and what the user permits.  Out: the compute dtype with the sentence that says
why, and `Masters`, which widens what is trained and rounds it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from sartor.device import architecture, fast_dtypes, kind_of
from sartor.errors import ConfigurationError

_HALF = frozenset({torch.bfloat16, torch.float16})
_ROUNDED = frozenset({torch.float32, *_HALF})
"""What bfloat16 takes the place of where updates are rounded stochastically."""


def choose_compute_dtype(device: torch.device, *, bf16: bool, fp16: bool, strict: bool) -> tuple[torch.dtype, str]:
    """The dtype of matrix products on this device, and why.

    Args:
        bf16: permission for bfloat16 mixed precision (`SFTConfig.bf16`).
        fp16: permission for float16 mixed precision.
        strict: take what is permitted even where the device is bad at it (`SFTConfig.strict_precision`).
    """
    if bf16 and fp16:
        raise ConfigurationError("bf16=True and fp16=True exclude each other: choose one.")
    if not bf16 and not fp16:
        return torch.float32, "float32: neither bf16 nor fp16 is permitted"
    wanted = torch.bfloat16 if bf16 else torch.float16
    name = "bf16" if bf16 else "fp16"
    if strict:
        return wanted, f"{name}: strict_precision=True"
    fast = fast_dtypes(device)
    if not kind_of(device).is_host:
        if torch.bfloat16 in fast:
            return wanted, f"{name}: this GPU has it"
        if torch.float16 in fast:
            return torch.float16, "fp16 with loss scaling: this GPU has no bf16 instructions"
        return torch.float32, f"float32: this GPU ({architecture(device)}) is fast at neither bf16 nor fp16"
    if bf16 and torch.bfloat16 in fast:
        return torch.bfloat16, "bf16: this processor has bf16 instructions"
    return torch.float32, (
        f"float32, although {name} is permitted: this processor has no {name} instructions, and would be 15 to 500 "
        "times slower in it (strict_precision=True forces it)"
    )


def require_bf16(compute_dtype: torch.dtype, reason: str) -> None:
    """Refuse to train bfloat16 weights where products are in another dtype.

    A product of bfloat16 weights in float32 would need a wide copy of them, which is what they are to spare.

    Args:
        compute_dtype: of products.
        reason: why they are in this dtype.

    Raises:
        ConfigurationError: it is not bfloat16.
    """
    if compute_dtype != torch.bfloat16:
        raise ConfigurationError(
            "stochastic_rounding=True trains bfloat16 weights, which have to be multiplied in bfloat16, and products "
            f"here are in {reason}. Leave stochastic_rounding out, or set bf16=True and strict_precision=True, which "
            "forces bfloat16 however slow it is."
        )


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """torch's autocast for a compute dtype; none for float32 and wider, whatever autocast the caller is in.

    Its cache of cast weights is off: a forward pass uses each weight once, and where activations are recomputed the
    cache alone would keep all of them to the end of the pass: 14 GB of a model of 8 billion.
    """
    if dtype in _HALF:
        return torch.autocast(device.type, dtype, cache_enabled=False)
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


class Masters:
    """Float32 masters of a model's trained parameters, in place of the parameters while training lasts.

    AdamW on bfloat16 weights at 2e-5 loses most updates to rounding, and transformers 5 loads models in the dtype they
    were published in.  So `widen` gives every trained parameter float32 data; `rounded` shows the model in the dtype it
    arrived in (to save it in the middle of training), `round` hands it back in that dtype and keeps the masters aside
    for a `widen` that follows.

    Example: a bfloat16 weight of 1 that gets 100 updates of 0.001 is 1 for ever; its master is 1.1 after them, and the
    weight that is handed back is 1.1 rounded to bfloat16.

    Where updates are rounded stochastically there are no masters: what is trained is bfloat16 whatever it arrived in,
    and goes back to the dtype that it arrived in.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._arrival: dict[nn.Parameter, torch.dtype] = {}
        self._kept: dict[nn.Parameter, torch.Tensor] = {}
        self._is_wide = False

    @property
    def arrival_dtypes(self) -> frozenset[torch.dtype]:
        """The dtypes that parameters had before they were widened."""
        return frozenset(self._arrival.values())

    def arrival_dtype(self, parameter: nn.Parameter) -> torch.dtype:
        """The dtype that a parameter is saved in: the one it had before it was widened, if it was."""
        return self._arrival.get(parameter, parameter.dtype)

    @property
    def is_rounding(self) -> bool:
        """Whether `rounded` has anything to round now."""
        return any(parameter.dtype != dtype for parameter, dtype in self._arrival.items())

    def widen(self, compute_dtype: torch.dtype, *, rounds: bool = False) -> None:
        """Give float32 data to what is trained, and, where float32 is computed in, to what is frozen too.

        Frozen weights of another dtype would otherwise be multiplied in that dtype, which a processor may be very slow
        at.  Quantized weights, which are integers or float8, stay, and so do float32 and float64.

        Args:
            compute_dtype: of products.
            rounds: what is trained gets bfloat16 data instead, since updates are rounded into it stochastically.
        """
        for parameter in self._model.parameters():
            if rounds and parameter.requires_grad and parameter.dtype in _ROUNDED:
                self._narrow(parameter)
                continue
            if parameter.dtype not in _HALF:
                if not self._is_wide:  # widened by the caller since: theirs to keep
                    self._arrival.pop(parameter, None)
                continue
            if not parameter.requires_grad and compute_dtype in _HALF:
                continue
            self._arrival[parameter] = parameter.dtype
            kept = self._kept.pop(parameter, None)
            # A caller may have changed the weights since: then the old master is no longer theirs.
            if kept is not None and _is_rounding_of(parameter.data, kept):
                parameter.data = kept.to(parameter.device)
            else:
                parameter.data = parameter.data.float()
            parameter.grad = None  # of another dtype than the data: an optimizer would refuse it
        self._is_wide = True

    def _narrow(self, parameter: nn.Parameter) -> None:
        if not self._is_wide:
            self._arrival[parameter] = parameter.dtype
        self._kept.pop(parameter, None)
        if parameter.dtype != torch.bfloat16:
            parameter.data = parameter.data.bfloat16()
            parameter.grad = None

    def round(self) -> None:
        """Hand the model back in the dtype it arrived in, in place; masters of what is trained are kept aside."""
        for parameter, dtype in self._arrival.items():
            if parameter.dtype == dtype:
                continue
            if parameter.requires_grad and parameter.dtype == torch.float32:
                self._kept[parameter] = parameter.data
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None
        self._is_wide = False

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """The model in the dtype it arrived in while the block lasts: to save it in the middle of training."""
        widened = {parameter: parameter.data for parameter, dtype in self._arrival.items() if parameter.dtype != dtype}
        try:
            for parameter in widened:
                parameter.data = parameter.data.to(self._arrival[parameter])
            yield
        finally:
            for parameter, data in widened.items():
                parameter.data = data

    @contextmanager
    def widened_for_now(self, compute_dtype: torch.dtype) -> Iterator[None]:
        """Float32 while the block lasts, for evaluation on a device that is slow in the dtype the model has.

        Nothing is kept: the weights that come back are the very ones that were there.
        """
        if compute_dtype in _HALF:
            yield
            return
        narrow = {parameter: parameter.data for parameter in self._model.parameters() if parameter.dtype in _HALF}
        try:
            for parameter in narrow:
                parameter.data = parameter.data.float()
            yield
        finally:
            for parameter, data in narrow.items():
                parameter.data = data


def _is_rounding_of(found: torch.Tensor, master: torch.Tensor) -> bool:
    """Whether nobody has written to `found` since it was rounded from `master`."""
    return found.shape == master.shape and torch.equal(master.to(found.device, found.dtype), found)
