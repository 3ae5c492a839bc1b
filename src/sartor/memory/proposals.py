"""What would make a training fit that does not: changes of its mathematics, each with its bytes and its cost.

In: a configuration and the leanest setting that leaves the mathematics alone.  Out: proposals, simulated one by one.
Nothing here is done unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sartor.device import kind_of
from sartor.memory.decide import Decision, Proposal, seconds_of
from sartor.memory.estimates import MemoryEstimates, Shape
from sartor.memory.failure import reason_of
from sartor.memory.rates import Rates
from sartor.memory.search import Setting
from sartor.memory.simulate import Training, meta_model_of
from sartor.memory.speed import Batch, Sizes
from sartor.optim.registry import state_bytes

LORA_RANK = 16
SHORTEST = 64
"""`max_length` below which none is proposed."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training that does not fit."""

    config: Any
    estimates: MemoryEstimates
    sizes: Sizes
    rates: Rates
    setting: Setting
    """The leanest."""
    needed_bytes: int
    """Under it."""


def with_proposals(decision: Decision, config: Any, estimates: MemoryEstimates, sizes: Sizes) -> Decision:
    """The decision; where nothing fits, with what would make it fit."""
    if decision.fits:
        return decision
    chosen = decision.chosen
    case = Case(config, estimates, sizes, decision.rates, chosen.setting, chosen.needed_bytes)
    return replace(decision, proposals=proposals(case))


def proposals(case: Case) -> tuple[Proposal, ...]:
    """Every change that applies, those that suffice first."""
    changes = (_adapters, _rounding, _optimizer, _shorter)
    found = [proposal for make in changes for proposal in make(case)]
    if not any(proposal.fits for proposal in found):
        found += _together(case)
    found += _smaller(case)
    return tuple(sorted(found, key=lambda proposal: not proposal.fits))


def _adapters(case: Case) -> Iterator[Proposal]:
    """LoRA, and on a GPU QLoRA."""
    training = case.estimates.training
    if training.lora is not None and training.four_bit:
        return
    import peft

    lora = training.lora or peft.LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    if training.lora is None:
        yield from _changed(
            case,
            f"LoRA, rank {LORA_RANK}",
            "--use_peft --lora_target_modules all-linear",
            "an adapter of low rank is trained, and the weights stay",
            replace(training, lora=lora),
        )
    if not kind_of(case.estimates.plan.device).is_host:
        yield from _changed(
            case,
            f"QLoRA, rank {LORA_RANK}",
            "peft_config and quantization_config=BitsAndBytesConfig(load_in_4bit=True) in Python",
            "the same beside weights rounded to 4 bits, which are made wide for each product",
            replace(training, lora=lora, four_bit=True),
        )


def _rounding(case: Case) -> Iterator[Proposal]:
    """bfloat16 weights and gradients, where products are in bfloat16 too; of an adapter they are next to nothing.

    States stay on the device where that suffices, else where the leanest setting has them.
    """
    training = case.estimates.training
    rounds = training.settings.stochastic_rounding
    if training.lora is not None or training.four_bit or rounds or training.make_optimizer is not None:
        return
    if case.estimates.plan.compute_dtype != "bfloat16" or state_bytes(training.optimizer) is None:
        return
    found: list[Proposal] = []
    for place in dict.fromkeys(("device", case.setting.execution.states)):
        where = "" if place == "device" else f", optimizer states on the {place}"
        found += _changed(
            case,
            f"bf16 weights with stochastic rounding{where}",
            "--stochastic_rounding",
            "weights and gradients are in bfloat16, and each update is rounded up or down at random",
            replace(training, settings=replace(training.settings, stochastic_rounding=True)),
            states=place,
        )
        if found and found[-1].fits:
            break
    yield from found[-1:]


def _optimizer(case: Case) -> Iterator[Proposal]:
    """Fewer or smaller states in place of AdamW's; of an adapter they are next to nothing."""
    training = case.estimates.training
    if training.lora is None and state_bytes(training.optimizer) == 8:
        if not kind_of(case.estimates.plan.device).is_host:
            yield from _changed(
                case,
                "8-bit optimizer states",
                "--optim adamw_8bit (needs bitsandbytes)",
                "the optimizer's states are rounded to 8 bits in blocks of 256",
                replace(training, optimizer="adamw_8bit"),
            )
        yield from _changed(
            case,
            "Adafactor",
            "--optim adafactor",
            "another optimizer, with second moments by rows and columns and no first ones",
            replace(training, optimizer="adafactor"),
        )


def _shorter(case: Case) -> Iterator[Proposal]:
    """The greatest power of two that fits; nothing where even the shortest does not."""
    lengths = _shorter_lengths(case.estimates.shape)
    if not lengths:
        return

    def proposal(length: int) -> Proposal:
        what = f"rows of at most {length:,} tokens", f"--max_length {length}", "longer rows are cut"
        return _proposal(_shortened(case, length), *what, is_rough=True)

    shortest = proposal(lengths[-1])
    if not shortest.fits:
        return
    yield next((found for found in map(proposal, lengths[:-1]) if found.fits), shortest)


def _together(case: Case) -> Iterator[Proposal]:
    """An adapter and shorter rows, where neither suffices; the greatest power of two at which an adapter fits."""
    if case.estimates.training.four_bit:
        return
    for length in _shorter_lengths(case.estimates.shape):
        for one in _adapters(_shortened(case, length)):
            if one.fits:
                yield replace(
                    one,
                    name=f"{one.name}, with rows of at most {length:,} tokens",
                    how=f"{one.how}, and --max_length {length}",
                    cost=f"{one.cost}; longer rows are cut",
                )
                return


def _shorter_lengths(shape: Shape) -> list[int]:
    """Powers of two below the longest row, the greatest first."""
    longest = 1 << (shape.longest_tokens - 1).bit_length()
    return [length for length in (longest >> power for power in range(1, 20)) if length >= SHORTEST]


def _shortened(case: Case, length: int) -> Case:
    """With no row longer than this, and one such row at once."""
    estimates, shape = case.estimates, case.estimates.shape
    share, batch = length / shape.longest_tokens, shape.batch
    shorter = replace(
        shape,
        longest_tokens=length,
        largest_batch_tokens=max(length, int(shape.largest_batch_tokens * share)),
        batch=Batch(batch.num_tokens * share, batch.num_targets * share, batch.mean_square_length * share),
    )
    changed = MemoryEstimates(estimates.model, estimates.plan, shorter, estimates.training, estimates.memory)
    return replace(case, estimates=changed, setting=replace(case.setting, micro_batch_tokens=length))


def _smaller(case: Case) -> Iterator[Proposal]:
    """How large a model of the same kind may be, its bytes in proportion to its weights."""
    memory = case.estimates.memory
    held = memory.held_bytes
    share = (memory.available_bytes + held) / max(1, case.needed_bytes + held)
    weights = int(case.sizes.all_weights * share * 0.95)
    if weights < 1_000_000:
        return
    size = f"{weights / 1e9:.1f} billion" if weights >= 1e9 else f"{weights / 1e6:,.0f} million"
    sizes = replace(
        case.sizes,
        layer_weights=int(case.sizes.layer_weights * share),
        head_weights=int(case.sizes.head_weights * share),
        trained_weights=int(case.sizes.trained_weights * share),
        all_weights=weights,
    )
    yield Proposal(
        f"a smaller model, of about {size} weights",
        "--model NAME",
        "another model; in proportion, not simulated",
        int(case.needed_bytes * share * 0.95),
        seconds_of(case.estimates, sizes, case.rates, case.setting),
        True,
    )


def _changed(
    case: Case, name: str, how: str, cost: str, training: Training, *, states: str = "device"
) -> Iterator[Proposal]:
    """The same run with another training; nothing where the architecture refuses it."""
    estimates = case.estimates
    # Few states, or those of another optimizer: on the device, and not by AdamW's implementations.
    execution = replace(case.setting.execution, states=states)
    if training.optimizer != estimates.training.optimizer:
        execution = replace(execution, implementation=None)
    plan, memory = estimates.plan, estimates.memory
    if training.settings.stochastic_rounding:
        plan = replace(plan, stochastic_rounding=True, parameter_dtype="bfloat16")
    # What the model holds now would be free.
    memory = replace(memory, available_bytes=memory.available_bytes + memory.held_bytes, held_bytes=0)
    try:
        model = meta_model_of(case.config, plan.compute_dtype, training)
        changed = MemoryEstimates(model, plan, estimates.shape, training, memory)
        setting = replace(case.setting, execution=execution)
        proposal = _proposal(replace(case, estimates=changed, setting=setting), name, how, cost)
    except Exception as error:  # peft's and torch's own refusals: this change does not apply
        reason_of(error)
        return
    yield proposal


def _proposal(case: Case, name: str, how: str, cost: str, *, is_rough: bool = False) -> Proposal:
    """To train as this case does, simulated."""
    estimates = case.estimates
    needed = estimates.needed_bytes(estimates.prediction(case.setting, case.sizes.num_layers, is_rough=is_rough))
    trained = sum(parameter.numel() for parameter in estimates.model.parameters() if parameter.requires_grad)
    seconds = seconds_of(estimates, replace(case.sizes, trained_weights=trained), case.rates, case.setting)
    return Proposal(name, how, cost, needed, seconds, needed <= estimates.memory.available_bytes)
