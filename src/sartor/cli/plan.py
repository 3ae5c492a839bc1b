"""`sartor plan`: what a training needs and how it would be executed, before a weight is loaded.

Prints a page, or JSON.  Exit code 1: it does not fit.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sartor.cli import plan_data
from sartor.cli.plan_flags import read
from sartor.cli.plan_flags import usage as usage
from sartor.cli.request import Request, configuration
from sartor.device import CUDA, default_kind, kind_of
from sartor.errors import ModelError, SartorError
from sartor.run.output import readers_may_leave

if TYPE_CHECKING:
    from sartor.config import Settings, SFTConfig
    from sartor.memory.estimates import Shape
    from sartor.memory.rates import Card, Rates
    from sartor.records import Plan

INTERPRETER_BYTES = 450 << 20
"""Of a process that trains on a CPU, before its model: Python, torch and transformers.  Measured: 400 to 440 MB."""


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor plan`; returns the exit code.  Raises SartorError."""
    request = read(argv)
    with readers_may_leave():
        return _plan(request)


def _plan(request: Request) -> int:
    from sartor.config import resolve
    from sartor.memory import plan_text, rates
    from sartor.memory.failure import reason_of

    own = request.own
    card = rates.card(own["gpu"]) if own.get("gpu") is not None else None
    stated = rates.memory_bytes(own["memory"]) if own.get("memory") is not None else None
    args = configuration(request, {"output_dir": "plan", "use_cpu": True})
    settings = resolve(args)
    shape, source = plan_data.shape(request, args, settings)
    try:
        decision, plan, num_layers, weights = _decide(request, args, settings, shape, card, stated)
    except SartorError:
        raise
    except Exception as error:  # what an architecture does on tensors without memory
        raise ModelError(
            f"what a training of {request.model!r} needs cannot be foreseen: {reason_of(error)}. It can be measured: "
            "sartor profile"
        ) from error
    optimizer = _optimizer(args)
    if own.get("json"):
        print(json.dumps(plan_text.as_json(decision, num_layers=num_layers, optimizer=optimizer), indent=2))
        return int(not decision.fits)
    what = f"{weights / 1e9:.2f} billion" if weights >= 1e9 else f"{weights / 1e6:,.0f} million"
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    head = (
        f"{request.model}: {what} weights; trained: {'a LoRA adapter' if own.get('use_peft') else 'all of them'}; "
        f"{batch} rows a step, {source}\n"
        f"on {card.name if card is not None else plan.device}, "
        f"{plan_text.gigabytes(decision.available_bytes)}; computing in {plan.compute_dtype}, trained in "
        f"{plan.parameter_dtype}" + (" with stochastic rounding" if plan.stochastic_rounding else "")
    )
    print(plan_text.page(decision, head=head, num_layers=num_layers, optimizer=optimizer))
    return int(not decision.fits)


def _decide(
    request: Request, args: "SFTConfig", settings: "Settings", shape: "Shape", card: "Card | None", stated: int | None
) -> tuple[Any, "Plan", int, int]:
    """(the decision, the plan it started from, layers, weights)."""
    import torch

    from sartor.cli.train import peft_config
    from sartor.engine.precision import require_bf16
    from sartor.engine.traits import read_traits
    from sartor.hf.settings import run_settings
    from sartor.memory.decide import Decider
    from sartor.memory.estimates import PROCESS_BYTES, Memory, MemoryEstimates
    from sartor.memory.plan import with_optimizer
    from sartor.memory.proposals import with_proposals
    from sartor.memory.simulate import Training, meta_model_of
    from sartor.memory.speed import sizes_of
    from sartor.optim.registry import options_of
    from sartor.run.device_batch import parts
    from sartor.run.planning import execution_options_of, search_space_of, with_unasked

    engine = settings.engine
    device = torch.device((CUDA if card is not None else default_kind()).name)
    config = _configuration(request.model, args)
    compute, compute_reason = _compute_dtype(args, card, device)
    if engine.stochastic_rounding:
        require_bf16(getattr(torch, compute), compute_reason)
    training = Training(
        arrival_dtype=_arrival_dtype(config, request),
        optimizer=_optimizer(args),
        optimizer_options=options_of(_optimizer(args), args.optim_args),
        rehearses=args.rehearse is not False,
        lora=peft_config(request.own),
        settings=engine,
    )
    model = meta_model_of(config, compute, training)
    traits = read_traits(model)
    available, reserve = _memory(card, stated, device, PROCESS_BYTES)
    base = _base_plan(traits, engine, device, compute, compute_reason, shape, available)
    base = with_optimizer(base, engine, training.optimizer)
    shape = replace(shape, document_limit=traits.rope_switch_tokens)
    memory = Memory(available, reserve_bytes=reserve)
    sizes = sizes_of(traits, model)
    speed = _rates(card, device, compute)
    estimates = MemoryEstimates(model, base, shape, training, memory)
    free = search_space_of(
        model, traits, engine, base, shape, execution_options_of(model, base, engine, training, memory)
    )
    decider = Decider(estimates, free, sizes, speed)
    decision = decider.decide(compares=True)
    decision = with_unasked(decision, decider, estimates, model, traits, engine)
    decision = with_proposals(decision, config, estimates, sizes)
    if decision.num_steps is None and args.max_steps > 0:
        decision = replace(decision, num_steps=args.max_steps)
    tokens = decision.chosen.setting.micro_batch_tokens
    size, steps, _ = parts(run_settings(args, settings), shape.longest_tokens, tokens)
    decision = replace(decision, device_batch=(size, steps))
    layout = f"layout assumed: {base.layout.value}; a run tries it first"
    return replace(decision, notes=(*decision.notes, layout)), base, traits.num_layers, sizes.all_weights


def _configuration(name: str, args: "SFTConfig") -> Any:
    """The model's configuration.

    Raises:
        ModelError: there is none, or it is no causal language model's.
    """
    from transformers import AutoConfig

    from sartor.hf import construction
    from sartor.run import loading

    if loading.is_adapter_folder(name):
        raise ModelError(f"{name!r} holds an adapter: plan for the model it belongs to, with --use_peft")
    keywords = construction.model_init_kwargs(args)
    loading.check_model(name, keywords)
    config = AutoConfig.from_pretrained(
        name, revision=keywords.get("revision"), trust_remote_code=args.trust_remote_code
    )
    return config.get_text_config()


def _compute_dtype(args: "SFTConfig", card: "Card | None", device: Any) -> tuple[str, str]:
    """What products are in: what this machine would choose, or what the listed GPU has."""
    from sartor.engine.precision import choose_compute_dtype

    if card is None:
        dtype, reason = choose_compute_dtype(device, bf16=bool(args.bf16), fp16=args.fp16, strict=args.strict_precision)
        return str(dtype).removeprefix("torch."), reason
    if not args.bf16 and not args.fp16:
        return "float32", "float32: neither bf16 nor fp16 is permitted"
    if args.bf16 and card.has_bf16:
        return "bfloat16", f"bf16: a {card.name} has it"
    return "float16", f"fp16 with loss scaling on a {card.name}"


def _arrival_dtype(config: Any, request: Request) -> str:
    asked = request.own.get("dtype") or "auto"
    found = asked if asked != "auto" else str(config.dtype or "float32").removeprefix("torch.")
    return found if found in ("bfloat16", "float16", "float32") else "float32"


def _optimizer(args: "SFTConfig") -> str:
    from transformers.training_args import OptimizerNames

    return str(OptimizerNames(args.optim).value)


def _memory(card: "Card | None", stated: int | None, device: Any, process_bytes: int) -> tuple[int, int]:
    """(what there is, what is kept free), in bytes."""
    if card is not None:
        return card.memory_bytes, process_bytes
    if stated is not None:
        return stated, process_bytes + (INTERPRETER_BYTES if kind_of(device).is_host else 0)
    from sartor.memory.limits import available_bytes

    return available_bytes(device), process_bytes  # this process is one already


def _base_plan(
    traits: Any, engine: Any, device: Any, compute: str, compute_reason: str, shape: "Shape", available: int
) -> "Plan":
    """The plan that the search starts from; its layout is the first that a run would try."""
    import torch

    from sartor.engine import attention
    from sartor.engine.layout import LayoutChoice, candidates
    from sartor.memory.plan import default_plan
    from sartor.records import Layout

    layout = candidates(traits)[0]
    name = attention.NAME if layout is Layout.FLAT_DOCUMENTS else traits.attention
    return default_plan(
        traits,
        engine,
        LayoutChoice(layout, name, "the first that a run tries"),
        device=device,
        parameter_dtype="bfloat16" if engine.stochastic_rounding else "float32",
        compute_dtype=compute,
        compute_reason=compute_reason,
        longest_tokens=shape.longest_tokens,
        available_bytes=available,
        num_threads=torch.get_num_threads(),
    )


def _rates(card: "Card | None", device: Any, compute: str) -> "Rates":
    import torch

    from sartor.engine.flops import measured_matrix_rate
    from sartor.memory import rates

    if card is not None:
        return rates.listed(card, compute)
    return rates.measured(measured_matrix_rate(device, getattr(torch, compute)), kind_of(device), compute)
