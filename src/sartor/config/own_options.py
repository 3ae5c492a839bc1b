"""The options that neither trl nor transformers has.

A plain dataclass that `SFTConfig` inherits, so that they are fields like all others.  No annotations from the future
here: argument parsers read the types.
"""

from dataclasses import dataclass, field, fields


@dataclass
class OwnOptions:
    """Sartor's own options; each has a default, a type that argument parsers can read, and a help text."""

    # --- the data ---
    map: list[str] | None = field(
        default=None,
        metadata={"help": "How to make messages of other columns: user='{question}' assistant='{answer}'."},
    )

    # --- the execution ---
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that go through the model at once; memory and speed, never the gradient. If not set, the "
            "plan chooses."
        },
    )
    total_batch_size: int | None = field(
        default=None, metadata={"help": "Examples per optimizer step; sets gradient_accumulation_steps."}
    )
    loss_chunk_rows: int | None = field(
        default=None, metadata={"help": "Target tokens the output head takes at once. If not set, the plan chooses."}
    )
    strict_precision: bool = field(
        default=False, metadata={"help": "Compute in bf16 or fp16 as asked, also where the hardware makes it slow."}
    )


OWN_FIELDS = tuple(entry.name for entry in fields(OwnOptions))
"""Their names."""
