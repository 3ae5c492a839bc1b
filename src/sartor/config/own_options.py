"""The options that neither trl nor transformers has.

A plain dataclass that `SFTConfig` inherits, so that they are fields like all others.  No annotations from the future
here: argument parsers read the types.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a configuration.

    Args:
        help: what it means, in one line.
        metadata: more that argument parsers read, such as `aliases` and `choices`.
    """
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class OwnOptions:
    """Sartor's own options; each has a default, a type that argument parsers can read, and a help text."""

    # --- the data ---
    map: list[str] | None = option(
        None, "How to make messages of other columns: user='{question}' assistant='{answer}'."
    )
    bad_rows: str = option(
        "error", "Rows that cannot be used: 'error' (one that names them), or 'skip' (named and counted)."
    )
    data_cache: str | None = option(
        None,
        "Folder where prepared data is kept, for the next run to find it; 'none': nowhere. If not set, "
        "`sartor` in the cache of the datasets library.",
    )
    mix_until: str = option(
        "first_exhausted",
        "Where a mixture of weighted sources ends: 'first_exhausted' (no row twice), 'all_exhausted' "
        "(every row at least once, those of small sources again), 'all_exhausted_without_replacement' (every row "
        "once).",
    )

    unroll: bool = option(
        False,
        "With assistant_only_loss: one row for each answer, of the messages up to it, of which the "
        "answer is trained. For chat templates that write earlier answers otherwise than the last.",
    )
    append_eot: bool = option(
        False,
        "With assistant_only_loss: append the end-of-text token to answers behind which the chat template "
        "writes no token that ends them.",
    )
    target_start: str = option(
        "proven",
        "How well the prompt must agree with what stands before an answer: 'proven' (it is the same), "
        "'variant' (it is the prompt of another thinking mode), 'partial' (only its header agrees).",
    )
    no_targets: str = option(
        "drop", "What becomes of rows of which max_length leaves nothing that is trained: 'drop' or 'error'."
    )

    # --- evaluation ---
    eval_on_end: bool = option(False, "Evaluate after the last step too, where no evaluation came then.")
    sample_prompts: list[str] | None = option(
        None, "Questions that the model is asked during training; its answers are kept in samples.md and samples.jsonl."
    )
    sample_steps: int | None = option(
        None,
        "Steps between answers to sample_prompts. If not set, they are asked at each evaluation. Always "
        "before the first step and after the last.",
    )
    sample_max_new_tokens: int = option(64, "Most tokens of an answer to sample_prompts.")

    # --- the execution ---
    micro_batch_tokens: int | None = option(
        None,
        "Tokens that go through the model at once; memory and speed, never the gradient. If not set, the plan chooses.",
    )
    rehearse: bool | None = option(
        None,
        "Whether the run's largest micro-batch goes through forward and backward before the first "
        "step, and the cut is made finer where memory ends. If not set: where the run has 50 steps and two "
        "minutes, of which it takes under 3 %.",
    )
    total_batch_size: int | None = option(
        None, "Examples per optimizer step. Alone, the plan chooses how it is split into device batches."
    )
    loss_chunk_rows: int | None = option(
        None, "Target tokens the output head takes at once. If not set, the plan chooses."
    )
    recomputed_operations: str | None = option(
        None,
        "What is recomputed in the backward pass: 'all' of a layer, or what is 'cheap': norms, activation "
        "functions, casts, and not matrix products and attention. If not set, the plan chooses; with "
        "gradient_checkpointing=True, all.",
    )
    optimizer_implementation: str | None = option(
        None,
        "How torch's optimizers take the same step: 'fused', 'foreach' (needs temporaries as large as the "
        "parameters) or 'for-loop'. If not set: what optim names, else fused where there is one, else the plan "
        "chooses.",
    )
    optimizer_states: str | None = option(
        None,
        "Where the states of torch's optimizers live between updates: on the 'device', or in the 'host's "
        "memory, from which each update streams them in pieces. If not set, the plan chooses.",
    )
    stochastic_rounding: bool = option(
        False,
        "Train in bfloat16, without float32 masters: each update is computed in float32 and rounded up or "
        "down at random, so that small updates are not lost on average. Half the bytes of parameters and gradients.",
    )
    on_non_finite: str = option(
        "stop",
        "What becomes of an optimizer batch whose loss or gradient is not finite: 'stop' (an error that "
        "names its rows), or 'skip' (it is not stepped on; said and counted).",
    )
    strict_precision: bool = option(False, "Compute in bf16 or fp16 as asked, also where the hardware makes it slow.")

    # --- checkpoints and the Hub ---
    on_full_disk: str = option(
        "stop",
        "What becomes of the run when a checkpoint does not fit on the disk: 'stop', or 'continue' without "
        "it. Those that were saved before stay in any case.",
    )
    save_in_background: bool = option(
        True,
        "Write checkpoints while training goes on. What is not written when the next optimizer step comes "
        "is copied, or waited for where memory has no room.",
    )
    hub_timeout_s: float = option(
        300.0,
        "Seconds without a byte in either direction after which a request to the Hub is given up. One that "
        "makes progress is never cut.",
    )
    accept_changes: list[str] | None = option(
        None,
        "Names of what may differ from the checkpoint that a run is resumed from: options, or data, "
        "eval_data, tokenizer, template, model, adapter, loss, device.",
    )


OWN_FIELDS = tuple(entry.name for entry in fields(OwnOptions))
"""Their names."""
