"""The rows of `sartor plan`: prepared as a training would prepare them, and found in its cache by the next one.

In: the request and its configuration.  Out: the data as far as memory and time are concerned.  No weight is read.
"""

from typing import TYPE_CHECKING, Any

from sartor.cli.request import Request, rows_of, tokenizer_of
from sartor.errors import ConfigurationError

if TYPE_CHECKING:
    from sartor.config import Settings, SFTConfig
    from sartor.memory.estimates import Shape

DEFAULT_LENGTH = 1_024
"""Of rows where there are none, and no `max_length`."""


def shape(request: Request, args: "SFTConfig", settings: "Settings") -> "tuple[Shape, str]":
    """The data, and in words where they are known from.

    Raises:
        SartorError: what a training would say of the rows before it begins.
    """
    if request.data:
        return _of_rows(request, args, settings)
    from sartor.memory.estimates import Shape
    from sartor.memory.speed import Batch

    length = int(args.max_length or DEFAULT_LENGTH)
    tokens = args.per_device_train_batch_size * args.gradient_accumulation_steps * length
    steps = args.max_steps if args.max_steps > 0 else None
    return (
        Shape(length, tokens, 1.0, Batch(tokens, tokens, length), steps),
        f"of {length:,} tokens each (no data given)",
    )


def _of_rows(request: Request, args: "SFTConfig", settings: "Settings") -> "tuple[Shape, str]":
    from sartor.hf.settings import run_settings
    from sartor.run.examples import Examples
    from sartor.run.planning import shape_of_examples

    rows = rows_of(request, "train", settings.data.data_cache)
    preparation = _preparation(request.model, args, settings)
    examples = Examples(preparation.prepare(rows, "train"))
    if not len(examples):
        raise ConfigurationError(f"--data {request.data}: no row can be used, so there is nothing to plan for")
    longest = max(1, examples.longest_document())
    words = f"{len(examples):,} {'blocks' if args.packing else 'rows'}, the longest document {longest:,} tokens"
    summary = preparation.summaries["train"]
    return shape_of_examples(examples.lengths, longest, summary, run_settings(args, settings)), words


def _preparation(model: str, args: "SFTConfig", settings: "Settings") -> Any:
    """What a training of this model prepares its rows with."""
    from sartor.run.preparation import Preparation, skips_preparation

    tokenizer, end_tokens = tokenizer_of(model, args)
    skips = skips_preparation(args.dataset_kwargs)
    return Preparation(tokenizer, settings.data, settings.eval_data, skips=skips, end_tokens=end_tokens)
