"""What would make a training fit that does not: changes of its mathematics, each with its bytes and its cost.

In: a configuration and the leanest setting that leaves the mathematics alone.  Out: proposals, simulated one by one.
Nothing here is done unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sartor.device import kind_of
from sartor.memory.decide import Decider, Decision, Proposal
from sartor.memory.estimates import Memory, MemoryEstimates, Shape
from sartor.memory.failure import reason_of
from sartor.memory.search import SearchSpace, Setting
from sartor.memory.simulate import Training, meta_model_of
from sartor.memory.speed import Batch, Sizes
from sartor.optim.registry import state_bytes
from sartor.records import Plan

LORA_RANK = 16
SHORTEST = 64
"""`max_length` below which none is proposed."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training that does not fit."""

    config: Any
    plan: Plan
    shape: Shape
    training: Training
    sizes: Sizes
    memory: Memory
    setting: Setting
    """The leanest."""
    needed_bytes: int
    """Under it."""
    seconds: Callable[[Sizes, Setting, Shape, Plan], float]
    """Of a step."""


def with_proposals(decision: Decision, config: Any, estimates: MemoryEstimates, sizes: Sizes) -> Decision:
    """The decision; where nothing fits, with what would make it fit."""
    if decision.fits:
        return decision

    def seconds(changed: Sizes, setting: Setting, shape: Shape, plan: Plan) -> float:
        other = MemoryEstimates(estimates.model, plan, shape, estimates.training, estimates.memory)
        one = SearchSpace((setting.micro_batch_tokens,), (setting.recomputed_layers,), (setting.loss_chunk_rows,),
                      (setting.execution,))  # fmt: skip
        return Decider(other, one, changed, decision.rates).seconds(setting)

    case = Case(
        config,
        estimates.plan,
        estimates.shape,
        estimates.training,
        sizes,
        estimates.memory,
        decision.chosen.setting,
        decision.chosen.needed_bytes,
        seconds,
    )
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
    if case.training.lora is not None and case.training.four_bit:
        return
    import peft

    lora = case.training.lora or peft.LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    if case.training.lora is None:
        yield from _changed(
            case,
            f"LoRA, rank {LORA_RANK}",
            "--use_peft --lora_target_modules all-linear",
            "an adapter of low rank is trained, and the weights stay",
            replace(case.training, lora=lora),
        )
    if not kind_of(case.plan.device).is_host:
        yield from _changed(
            case,
            f"QLoRA, rank {LORA_RANK}",
            "peft_config and quantization_config=BitsAndBytesConfig(load_in_4bit=True) in Python",
            "the same beside weights rounded to 4 bits, which are made wide for each product",
            replace(case.training, lora=lora, four_bit=True),
        )


def _rounding(case: Case) -> Iterator[Proposal]:
    """bfloat16 weights and gradients, where products are in bfloat16 too; of an adapter they are next to nothing.

    States stay on the device where that suffices, else where the leanest setting has them.
    """
    training = case.training
    rounds = training.settings.stochastic_rounding
    if training.lora is not None or training.four_bit or rounds or training.make_optimizer is not None:
        return
    if case.plan.compute_dtype != "bfloat16" or state_bytes(training.optimizer) is None:
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
    if case.training.lora is None and state_bytes(case.training.optimizer) == 8:
        if not kind_of(case.plan.device).is_host:
            yield from _changed(
                case,
                "8-bit optimizer states",
                "--optim adamw_8bit (needs bitsandbytes)",
                "the optimizer's states are rounded to 8 bits in blocks of 256",
                replace(case.training, optimizer="adamw_8bit"),
            )
        yield from _changed(
            case,
            "Adafactor",
            "--optim adafactor",
            "another optimizer, with second moments by rows and columns and no first ones",
            replace(case.training, optimizer="adafactor"),
        )


def _shorter(case: Case) -> Iterator[Proposal]:
    """The greatest power of two that fits; nothing where even the shortest does not."""
    lengths = _shorter_lengths(case.shape)
    if not lengths:
        return
    model = meta_model_of(case.config, case.plan.compute_dtype, case.training)

    def proposal(length: int) -> Proposal:
        shape = _shortened(case.shape, length)
        setting = replace(case.setting, micro_batch_tokens=length)
        estimates = MemoryEstimates(model, case.plan, shape, case.training, case.memory)
        needed = estimates.needed_bytes(estimates.prediction(setting, case.sizes.num_layers, is_rough=True))
        fits = needed <= case.memory.available_bytes
        seconds = case.seconds(case.sizes, setting, shape, case.plan)
        what = f"rows of at most {length:,} tokens"
        return Proposal(what, f"--max_length {length}", "longer rows are cut", needed, seconds, fits)

    shortest = proposal(lengths[-1])
    if not shortest.fits:
        return
    yield next((found for found in map(proposal, lengths[:-1]) if found.fits), shortest)


def _together(case: Case) -> Iterator[Proposal]:
    """An adapter and shorter rows, where neither suffices; the greatest power of two at which an adapter fits."""
    if case.training.four_bit:
        return
    for length in _shorter_lengths(case.shape):
        shorter = replace(
            case, shape=_shortened(case.shape, length), setting=replace(case.setting, micro_batch_tokens=length)
        )
        for one in _adapters(shorter):
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


def _shortened(shape: Shape, length: int) -> Shape:
    """The data with no row longer than this."""
    share, batch = length / shape.longest_tokens, shape.batch
    return replace(
        shape,
        longest_tokens=length,
        largest_batch_tokens=max(length, int(shape.largest_batch_tokens * share)),
        batch=Batch(batch.num_tokens * share, batch.num_targets * share, batch.mean_square_length * share),
    )


def _smaller(case: Case) -> Iterator[Proposal]:
    """How large a model of the same kind may be, its bytes in proportion to its weights."""
    held = case.memory.held_bytes
    share = (case.memory.available_bytes + held) / max(1, case.needed_bytes + held)
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
        case.seconds(sizes, case.setting, case.shape, case.plan),
        True,
    )


def _changed(
    case: Case, name: str, how: str, cost: str, training: Training, *, states: str = "device"
) -> Iterator[Proposal]:
    """The same run with another training; nothing where the architecture refuses it."""
    # Few states, or those of another optimizer: on the device, and not by AdamW's implementations.
    same = training.optimizer == case.training.optimizer
    execution = replace(
        case.setting.execution, states=states, implementation=case.setting.execution.implementation if same else None
    )
    setting = replace(case.setting, execution=execution)
    plan = case.plan
    if training.settings.stochastic_rounding:
        plan = replace(plan, stochastic_rounding=True, parameter_dtype="bfloat16")
    try:
        model = meta_model_of(case.config, case.plan.compute_dtype, training)
        estimates = MemoryEstimates(model, plan, case.shape, training, replace(case.memory, held_bytes=0))
        needed = estimates.needed_bytes(estimates.prediction(setting, case.sizes.num_layers))
    except Exception as error:  # peft's and torch's own refusals: this change does not apply
        reason_of(error)
        return
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sizes = replace(case.sizes, trained_weights=trained)
    available = case.memory.available_bytes + case.memory.held_bytes  # what the model holds now would be free
    yield Proposal(name, how, cost, needed, case.seconds(sizes, setting, case.shape, plan), needed <= available)
