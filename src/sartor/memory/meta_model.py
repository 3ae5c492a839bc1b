"""A model that has shapes and dtypes but no memory: built from its configuration, on fake tensors.

In: a transformers configuration, perhaps a LoRA configuration.  Out: the model whose parameters are fake CPU tensors,
made inside the caller's FakeTensorMode.  What it keeps true: parameters that are tied stay one tensor, and every
parameter has the dtype that a training would give it (float32 masters for what is trained).

The model is built on the meta device *outside* of fake mode, since transformers and peft both initialise weights in
ways that fake mode refuses, and its tensors are swapped for fake ones afterwards.

Quantized layers are stood in for by rule: what bitsandbytes' 4-bit layers keep and allocate, without bitsandbytes.
That is unmeasured, and a prediction that used it says so.  The rules are those of the paper: 4-bit weights are two to a
byte with a scale per 64 values, the scales themselves in 8 bits with a float32 per 256 of them (Dettmers et al. 2023,
section 3, https://huggingface.co/papers/2305.14314).  The whole weight is made in the compute dtype for a product,
forward and backward.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sartor import compat
from sartor.device import HOST
from sartor.engine.traits import decoder
from sartor.errors import ModelError


def build(config: Any, *, dtype: torch.dtype, lora: Any = None, four_bit: bool = False) -> nn.Module:
    """The model on the meta device, in training mode.

    Args:
        config: of a causal language model; it is copied.
        dtype: that it arrives in, as `from_pretrained(dtype=...)` would load it.
        lora: a peft configuration, or None for full training.
        four_bit: weights are quantized by rule (nf4, double quantized).
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    # No random numbers for weights that have no memory: with large models that is most of the building time.
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        model.tie_weights()  # left out with the initialisation
        if four_bit:
            quantize(model)
        if lora is not None:
            import peft

            with warnings.catch_warnings():  # peft asks for a name that transformers calls old
                warnings.simplefilter("ignore", FutureWarning)
                model = peft.get_peft_model(model, copy.deepcopy(lora))
    model.train()
    return model


def imitate(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device: shapes, dtypes, ties and what is trained, without a byte of its weights.

    Hooks are left out: they are somebody's who watches the model, and who must not see a pass that is only simulated.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo |= {id(vars(module)[name]): OrderedDict() for name in compat.HOOKS if name in vars(module)}
        for _, _, tensor in _tensors_of(module):
            if id(tensor) not in memo:
                memo[id(tensor)] = _empty(tensor, "meta")
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:  # a module may hold what it likes: a lock, an open file
        raise ModelError(f"its modules cannot be copied: {error}") from error
    return copied.train()


def widen(model: nn.Module, compute_dtype: torch.dtype, *, rounds: bool = False) -> None:
    """Give parameters on the meta device the dtypes of a training: see `engine.precision.Masters.widen`."""
    from sartor.engine.precision import Masters

    Masters(model).widen(compute_dtype, rounds=rounds)


def materialise(model: nn.Module) -> None:
    """Swap every parameter and buffer for an empty tensor of the current mode: fake ones inside a FakeTensorMode."""
    swapped: dict[int, Any] = {}
    for module in model.modules():
        for holder, name, tensor in _tensors_of(module):
            if id(tensor) not in swapped:
                swapped[id(tensor)] = (_empty(tensor, HOST), tensor)  # which lives on, so that no other has its id
            holder[name] = swapped[id(tensor)][0]


def _empty(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor, or parameter, of the same shape and dtype, whose content is none."""
    with torch.no_grad():
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _tensors_of(module: nn.Module) -> Iterator[tuple[dict[Any, Any], Any, torch.Tensor]]:
    """Each tensor that a module holds, with the dictionary that it is in and its name there.

    Beside parameters and buffers those are attributes, some of them buffers under a second name (rotary embeddings),
    and what dictionaries of an adapter's names hold.  Example: FourierFT and SHiRA keep the places of what they train
    in `{"default": tensor}`.
    """
    attributes = vars(module)
    holders: list[dict[Any, Any]] = [
        compat.own_parameters(module),
        compat.own_buffers(module),
        attributes,
        *(value for name, value in attributes.items() if type(value) is dict and name not in compat.REGISTERED),
    ]
    for holder in holders:
        for name, value in list(holder.items()):
            if isinstance(value, torch.Tensor):
                yield holder, name, value


def layers_of(model: nn.Module, num_layers: int) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """Where the decoder's layers are: (owner, attribute name, list); None where no list has that many modules."""
    for owner in decoder(model).modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                return owner, name, child
    return None


def kinds_of(layers: Sequence[nn.Module]) -> list[int]:
    """A number for each layer, the same where modules, shapes, dtypes and plain settings are, but for its number."""
    numbers: dict[tuple[Any, ...], int] = {}
    return [numbers.setdefault(_signature(layer), len(numbers)) for layer in layers]


_OWN = ("layer_idx", "gradient_checkpointing")
"""Which layer it is, and what an earlier simulation left: the plan says what is recomputed."""


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    parts: list[Any] = []
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if key not in _OWN and isinstance(value, (int, float, str, bool, tuple, type(None)))
        }
        parts.append((name, type(module), tuple(sorted((key, repr(value)) for key, value in plain.items()))))
    for name, parameter in layer.named_parameters():
        parts.append((name, tuple(parameter.shape), parameter.dtype, parameter.requires_grad))
    return tuple(parts)


@contextmanager
def with_layers(model: nn.Module, num_layers: int, places: Sequence[int]) -> Iterator[None]:
    """The decoder with these of its `num_layers` layers only, while the block lasts.

    Its configuration lists their types in this order, and all others after them: what is made once for each type there
    is, a mask or rotary frequencies, goes on to be made.
    """
    found = layers_of(model, num_layers)
    if found is None or list(places) == list(range(num_layers)):
        yield
        return
    owner, name, layers = found
    config: Any = decoder(model).config
    types = vars(config).get("layer_types")  # some configurations derive it
    setattr(owner, name, nn.ModuleList([layers[place] for place in places]))
    if types is not None:
        left = [kind for place, kind in enumerate(types) if place not in set(places)]
        config.layer_types = [*(types[place] for place in places), *left]
    try:
        yield
    finally:
        setattr(owner, name, layers)
        if types is not None:
            config.layer_types = types


_VALUES_PER_SCALE = 64
_SCALES_PER_SCALE = 256


def quantize(model: nn.Module) -> None:
    """Replace the linear layers of the decoder; embeddings and head stay as they are.

    Args:
        model: on the meta device.
    """
    for parent in decoder(model).modules():
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, QuantizedLinear(child))
    for parameter in model.parameters():
        parameter.requires_grad_(False)


class QuantizedLinear(nn.Linear):
    """Frozen; a Linear to peft, which puts its adapter around it."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        num_values = plain.in_features * plain.out_features
        packed = torch.empty(-(-num_values // 2), 1, dtype=torch.uint8, device="meta")
        num_scales = -(-num_values // _VALUES_PER_SCALE)
        self.register_buffer("scales", torch.empty(num_scales, dtype=torch.uint8, device="meta"))
        nested = -(-num_scales // _SCALES_PER_SCALE)
        self.register_buffer("nested_scales", torch.empty(nested, dtype=torch.float32, device="meta"))
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product; shapes as nn.Linear's, in autocast's dtype where it is on."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            return _Product.apply(input.to(dtype), self)


class _Product(torch.autograd.Function):
    """Keeps the packed weight for backward, never the wide one."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(input, _wide(layer, input), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ _wide(ctx.layer, gradient), None


def _wide(layer: QuantizedLinear, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty((layer.out_features, layer.in_features))
