"""What is private or undocumented in torch and transformers and is used all the same: one accessor for each.

Each says what it is, where it is used, and what happens where a version lacks it.  Whether it is there is asked of the
thing itself, never of a version number: a number says nothing about a patched build.  "It fails" means an
`AttributeError` or `ImportError` that names what is missing: nothing is trained on a guess.

Every room may import this module, and it knows none.  Libraries are imported where they are asked.  What `hf/`
calls of `transformers.Trainer`, whose subclass it is, stays there.  `docs/README.md` has a table of all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

# --- transformers: templates and tokenizers --------------------------------------------------------------------------


class TemplateFunctions(NamedTuple):
    """How `apply_chat_template` prepares what a template sees, and compiles it."""

    plain_data: Callable[[Any], Any]
    """Values as a template may see them: JSON's types alone."""
    alias_reasoning: Callable[[Any], Any]
    """Messages with their reasoning under all of its names."""
    compile: Callable[[str], Any]
    """A template of Jinja, in transformers' own environment."""


def template_functions() -> TemplateFunctions:
    """`_plain_template_data`, `_alias_reasoning_fields` and `_compile_jinja_template` of transformers.

    `data/templates/provenance/render.py` renders parts of a conversation with them, with a clock that stands still, for
    which there is nothing public.  Without one of them it fails.
    """
    from transformers.utils import chat_template_utils

    return TemplateFunctions(
        chat_template_utils._plain_template_data,
        chat_template_utils._alias_reasoning_fields,
        chat_template_utils._compile_jinja_template,
    )


def encodes_as_usual(kind: type) -> bool:
    """Whether a class of fast tokenizers has the `_encode_plus` of its base, so that calling it is calling Rust.

    `data/tokens/tokenizing.py` calls Rust itself then.  Without the method the answer is no, and texts are encoded
    through the tokenizer, which is slower.
    """
    from transformers import PreTrainedTokenizerFast

    own = getattr(PreTrainedTokenizerFast, "_encode_plus", None)
    return own is not None and getattr(kind, "_encode_plus", None) is own


# --- transformers: models and files ----------------------------------------------------------------------------------


def attention_of(config: Any) -> str:
    """The attention implementation that a model runs: `_attn_implementation` of its configuration.

    `engine/` puts it back after its own, and `run/resume.py` compares it with a plan's.  Setting it is
    public, asking for it isn't.  Without it, it fails.
    """
    return config._attn_implementation


def carries_state(model: Any) -> bool:
    """Whether a model carries a state along the row, as Mamba does: its `_is_stateful`.

    `chat/sample.py` answers prompts of unequal length one by one then, since padding would disturb the state.  Without
    it, it fails.
    """
    return bool(model._is_stateful)


def name_or_path(model: Any) -> str:
    """The folder or Hub id that a model was loaded from: `_name_or_path` of its configuration, empty where it was made.

    `hf/` finds the tokenizer by it, and names run and card.  Where a configuration of the user's own lacks it, it
    is empty.
    """
    return str(getattr(model.config, "_name_or_path", None) or "")


def weights_not_saved(model: Any) -> set[str]:
    """Names of weights that `save_pretrained` leaves out: `_keys_to_ignore_on_save`.

    `run/model_files.py` names what a checkpoint will hold before it is written.  Without it, it fails.
    """
    return set(model._keys_to_ignore_on_save or ())


def has_inner_adapter(model: Any) -> bool:
    """Whether a model has an adapter of transformers' own integration: `_hf_peft_config_loaded`, set with the first.

    `engine/traits.py` leaves saving such a model to itself.  Where it isn't set there is no adapter.
    """
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def is_tensor_parallel(model: Any) -> bool:
    """Whether a model's matrices are spread over devices: its `_tp_size`.

    `engine/traits.py` leaves saving such a model to itself.  Without it, it fails.
    """
    return model._tp_size is not None


def registered_in(interface: Any) -> dict[str, Callable[..., Any]]:
    """`_global_mapping` of an interface of transformers (of attention, of masks): what is registered, by name.

    `engine/attention.py` takes back what it has registered, for which there is nothing public; masks are looked up in
    this very mapping.  Without it that fails.
    """
    return interface._global_mapping


def namespace_values(namespace: Any) -> dict[str, Any]:
    """What a template's `namespace` holds: Jinja keeps it under a private name.

    `data/templates/provenance/order.py` compares it.  Without it there is nothing to compare, and the beginning of a
    conversation is rendered where it might have been told.
    """
    return getattr(namespace, "_Namespace__attrs", {"unknown": object()})


def set_layer_checkpoint(layer: Any, checkpoint: Callable[..., Any]) -> None:
    """How one layer recomputes: `_gradient_checkpointing_func` of transformers' `GradientCheckpointingLayer`.

    `engine/recompute.py` recomputes layers in different ways; what is public sets one way for all.  Where the name is
    another, all layers recompute whole, and the plan's memory is more than is needed: tests notice.
    """
    layer._gradient_checkpointing_func = checkpoint


def has_file(source: str, name: str, *, revision: str | None, token: str | bool | None) -> bool:
    """Whether a repository of the Hub, or its copy in the cache, has a file.

    `_raise_exceptions_for_missing_entries` of `cached_file` tells a missing file from a Hub that can't be reached,
    which raises.  `chat/loading.py` asks whether an adapter brings a tokenizer.  Without it, it fails.
    """
    from transformers.utils import cached_file

    found = cached_file(source, name, revision=revision, token=token, _raise_exceptions_for_missing_entries=False)
    return found is not None


# --- torch: modules and compilers ------------------------------------------------------------------------------------

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module that hold hooks; `memory/meta_model.py` leaves them out of a copy.  One that a version lacks
holds none."""
REGISTERED = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that hold what is registered; what it holds beside them is a plain attribute."""


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters, to be swapped in place: `_parameters`.

    `memory/meta_model.py` puts fake tensors in their places, for which assigning is too strict.  Without it, it fails.
    """
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """A module's own buffers, to be swapped in place: `_buffers`; see `own_parameters`."""
    return module._buffers


def drop_forward_hooks(module: nn.Module) -> None:
    """Take all of a module's forward hooks off: `_forward_hooks`, `_forward_pre_hooks`.

    `run/rehearsal.py` does so with a copy, whose hooks have no handles.  Without them, it fails.
    """
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()


def plain_call(layer: nn.Module) -> Callable[..., Any]:
    """What `layer(...)` runs: `_call_impl`, which `nn.Module.compile` compiles; `engine/compiled.py` too.

    Without it, it fails.
    """
    return layer._call_impl


def set_compiled_call(layer: nn.Module, call: Callable[..., Any] | None) -> None:
    """What `layer(...)` runs in place of `plain_call`: `_compiled_call_impl`; None: nothing.

    `nn.Module.compile` sets it for good; `engine/compiled.py` takes it back.  Where the name is another, layers run
    uncompiled: tests notice.
    """
    layer._compiled_call_impl = call


def has_cpp_compiler() -> bool:
    """Whether inductor finds a C++ compiler: `get_cpp_compiler`; `engine/compiled.py` says so before a run.

    Without it, it fails.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True


def has_triton() -> bool:
    """Whether inductor finds a Triton that knows the device; `engine/compiled.py` says so before a run.

    Without it, it fails.
    """
    from torch.utils import _triton

    return bool(_triton.has_triton())


# --- torch: tensors and operators ------------------------------------------------------------------------------------


def num_writes(tensor: torch.Tensor) -> int:
    """How often a tensor was written to in place: `_version`, of which autograd makes its own check.

    `engine/recompute.py`, `run/snapshot.py` and `run/transaction.py` see by it that nothing was changed meanwhile.
    Without it, it fails.
    """
    return tensor._version


def storage_key(storage: Any) -> int:
    """What tells one storage from another while both are alive: `_cdata`; fake ones have no address.

    `memory/tracker.py` and `engine/recompute.py` count by it.  Without it, it fails.
    """
    return int(storage._cdata)


def schema(operator: Any) -> Any:
    """Name and arguments of an operator of torch's dispatcher: `_schema`.

    `engine/recompute.py` and `memory/kernel_rules.py` know operators by it.  Without it, it fails.
    """
    return operator._schema


def uncounted_views() -> AbstractContextManager[Any]:
    """Within the block a detached tensor counts writes of its own.

    Otherwise torch counts writes to the result as writes to what `engine/recompute.py` keeps of it:
    `_SetExcludeDispatchKeyGuard` takes the key that counts out.  Without it, it fails.
    """
    import torch

    return torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False)


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody hooked into an optimizer's steps: `_optimizer_step_pre_hooks`, `_optimizer_step_post_hooks`.

    `run/transaction.py` doesn't take a step in pieces then, since hooks would be called for each.  Without them, it
    fails.
    """
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def set_last_rates(schedule: Any, rates: Iterable[float]) -> None:
    """What `get_last_lr` of a schedule returns: `_last_lr`.

    `run/resume.py` moves a new schedule to an old one's step.  Where the name is another, the first log after
    resuming shows the rate of step 0: tests notice.
    """
    schedule._last_lr = list(rates)


def profiler_is_on() -> bool:
    """Whether a profiler of torch's is at work: of this thread, and of all threads.

    `memory/trace.py` leaves the user's alone.  Without one of the flags, it fails.
    """
    import torch

    return bool(torch._C._autograd._profiler_enabled() or torch.autograd.profiler._is_profiler_enabled)


def is_prepared(profile: torch.autograd.profiler.profile) -> bool:
    """Whether a session of the profiler is entered and has no results yet: `entered` and `kineto_results`.

    A session that `torch.profiler.schedule` prepares in its warm-up shows in no flag.  Without them, it fails.
    """
    return bool(profile.entered and profile.kineto_results is None)


def profiled_events(profile: torch.autograd.profiler.profile) -> list[Any]:
    """What a finished session saw, the allocator's events among them: `kineto_results`, of which the table shows sums.

    `memory/trace.py` replays them.  Without it, it fails.
    """
    results = profile.kineto_results
    assert results is not None
    return [*results.events()]
