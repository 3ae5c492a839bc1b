"""What rooms hand to each other: frozen records without behaviour beyond their own consistency.

Shape suffixes used in tensor code throughout the package:

    T  tokens of a flat row (all documents of a micro-batch end to end)
    N  target tokens of a micro-batch (positions whose next token is trained)
    D  documents of a micro-batch
    B  rows of a padded batch, L its length
    H  hidden width, V vocabulary, C rows of one loss chunk
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

IGNORE_INDEX = -100
"""Label of a token that is not trained, as in transformers and trl."""


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read: its columns, and where it came from."""

    columns: Mapping[str, Any]
    source: str
    """A file's path, a Hub id, or the name of the argument it was passed as (`train_dataset`)."""
    number: int
    """Line of the file, from 1, where the source has lines; else the row's index, from 0."""
    is_line: bool = False

    @property
    def where(self) -> str:
        """For messages: `train.jsonl, line 12` or `train_dataset, row 11`."""
        return f"{self.source}, {'line' if self.is_line else 'row'} {self.number}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one row, or with a whole source, and what to do."""

    kind: str
    """Short and the same for all rows with this problem, so that they can be counted: `missing column`."""
    where: str
    message: str
    excerpt: str = ""


class RowFormat(StrEnum):
    """What a row's columns mean."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt + completion"
    CONVERSATIONAL_PROMPT_COMPLETION = "prompt + completion, as messages"
    TEXT = "text"
    TOKENIZED = "input_ids"
    SEVERAL = "several formats"
    """Of a mixture, whose sources are each read as what they are."""


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What the data room needs to know; made from SFTConfig by `config.resolve`."""

    dataset_text_field: str = "text"
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    packing: bool = False
    packing_strategy: str = "bfd"
    shuffle_dataset: bool = False
    num_proc: int | None = None
    seed: int = 42
    mapping: tuple[tuple[str, str], ...] = ()
    """(role, template) pairs of `--map`, in order: `("user", "{question}")`."""
    bad_rows: str = "error"
    """"error" or "skip": what becomes of rows that cannot be used."""
    mix_until: str = "first_exhausted"
    """Where a mixture of weighted sources ends, in the words of `datasets.interleave_datasets`."""
    unroll: bool = False
    """One row for each answer, of the messages up to it."""
    append_eot: bool = False
    """The end-of-text token is appended to answers behind which the template writes no end."""
    target_start: str = "proven"
    """"proven", "variant" or "partial": how well a prompt must agree with what stands before an answer."""
    no_targets: str = "drop"
    """"drop" or "error": what becomes of rows that `max_length` leaves without targets."""
    data_cache: str | None = None
    """The folder where prepared data is kept; None: beside the data sets of the Hub; "none": nowhere."""
    num_embeddings: int | None = None
    """Rows of the model's embedding: ids from there on cannot be looked up; None: not known, or there is none."""
    num_positions: int | None = None
    """Positions that the model has a learned vector or a fixed table for; None: it takes any."""


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Counts of one prepared data set; everything that was dropped or cut is in here."""

    name: str
    format: RowFormat
    num_rows: int
    """Rows read; for a stream, rows read so far."""
    num_examples: int
    num_tokens: int
    num_targets: int
    longest_tokens: int
    num_truncated_rows: int = 0
    num_truncated_tokens: int = 0
    num_truncated_targets: int = 0
    num_dropped_rows: int = 0
    """Rows left without any target by truncation, and therefore dropped, as trl does."""
    notes: tuple[str, ...] = ()
    """Sentences worth saying aloud: which template was used, what was appended."""
    num_skipped_rows: int = 0
    """Rows that cannot be used and were left out, as `bad_rows="skip"` asks for; `num_rows` counts them too."""
    skipped_kinds: Mapping[str, int] = field(default_factory=dict)
    """What is wrong with them, and how often: `{"unknown role": 2}`."""
    source_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows that each file or data set gave; a row that a mixture repeats is counted each time."""


def target_flags(labels_T: Any, document_lengths: Any, weights_T: Any = None) -> NDArray[np.bool_]:
    """Which tokens are targets: what the loss sums over, and is divided by the number of.

    A target is a token that is labelled and weighs more than 0, but for each document's first, which nothing predicts.

    Args:
        labels_T: unshifted labels of documents that lie end to end, -100 where a token is not trained.
        document_lengths: D lengths that add up to T; a document may be empty.
        weights_T: what each token weighs; None or empty: each weighs 1.

    Example: labels [5, 6, -100, 8, 9] of documents of 3 and 2 tokens: the targets are 6 and 9.
    """
    import numpy as np

    is_target: NDArray[np.bool_] = np.asarray(labels_T) != IGNORE_INDEX
    if weights_T is not None and len(weights_T):
        is_target &= np.asarray(weights_T, np.float32) > 0  # in the dtype that the loss weighs in
    lengths_D = np.asarray(document_lengths, np.int64)
    starts_D = np.cumsum(lengths_D) - lengths_D
    is_target[starts_D[lengths_D > 0]] = False
    return is_target


@dataclass(frozen=True)
class Example:
    """One tokenized example.

    `labels` are unshifted: `labels[t]` is `input_ids[t]` where token t is trained, else -100.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    seq_lengths: tuple[int, ...] = ()
    """Lengths of the documents in it, where it is a packed block; empty: one document."""
    weights: Sequence[float] = ()
    """What each token weighs in the loss, from 0 on, aligned with `labels`; empty: each weighs 1."""

    @property
    def document_lengths(self) -> tuple[int, ...]:
        """Tokens of each document in it: of one, but for a packed block."""
        return self.seq_lengths or (len(self.input_ids),)

    @cached_property
    def is_target(self) -> NDArray[np.bool_]:
        """Which of its tokens are targets; looked at once."""
        return target_flags(self.labels, self.document_lengths, self.weights)

    @cached_property
    def num_targets(self) -> int:
        """Tokens that are trained and predicted by something."""
        return int(self.is_target.sum())

    @property
    def total_weight(self) -> float:
        """What its targets weigh together; without weights, their number."""
        import numpy as np

        if not len(self.weights):
            return self.num_targets
        return float(np.asarray(self.weights, np.float64)[self.is_target].sum())


@dataclass(frozen=True, slots=True)
class PreparedData:
    """One data set, ready for training: what `trainer.train_dataset` is, and what happened on the way there."""

    dataset: Any
    """datasets.Dataset or IterableDataset with `input_ids`, `labels` (unshifted, -100 where not trained), for packed
    blocks `seq_lengths`, and where some target weighs other than 1 `weights`."""
    summary: DataSummary
    places: Any = None
    """`data.reading.places.Places`: the rows, by file and line, that each example is made of; of a stream
    `RecentPlaces`; None where nothing is known, as of a stream that is shuffled."""
    counted: Callable[[], DataSummary] | None = None
    """Of a stream: its summary with the counts of what was read by now; None where `summary` has them all."""
    digest: str | None = None
    """Of the examples' content; None where nobody has taken it, as of a stream."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Which pieces of which rows make up each block.

    Piece i is tokens `starts[i]` to `starts[i] + lengths[i]` of row `rows[i]`.  Worked example: rows of 3 and 6 tokens
    in blocks of 4, split: `rows [1, 0, 1]`, `starts [0, 0, 4]`, `lengths [4, 3, 2]`, `pieces_per_block [1, 1, 1]`.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    pieces_per_block: NDArray[np.int64]
    """Adds up to the number of pieces; pieces of a block are neighbours."""
    keeps_documents: bool
    """Whether each piece is a document of its own; False where a block is one running text (`wrapped`)."""


# --- batching and engine ---------------------------------------------------------------------------------------------


class Layout(StrEnum):
    """How the documents of a micro-batch are laid out so that none sees another."""

    FLAT_DOCUMENTS = "flat, attention per document"
    """One flat row; our own attention loops over documents.  Only for models whose traits it honours."""
    FLAT_POSITIONS = "flat, restarting positions"
    """One flat row; transformers builds the block mask from positions that restart."""
    FLAT_MASK = "flat, explicit mask"
    """One flat row with an explicit block-diagonal causal mask."""
    PADDED = "padded"
    """One row per document, padded on the right."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What goes through the model at once: whole documents, end to end."""

    input_ids_T: torch.Tensor
    """int64."""
    position_ids_T: torch.Tensor
    """int64, restarting at 0 in each document."""
    document_lengths: tuple[int, ...]
    """D lengths that add up to T."""
    target_rows_N: torch.Tensor
    """int64: the positions t of the flat row whose next token, in the same document, is trained."""
    targets_N: torch.Tensor
    """int64: the trained tokens, `targets_N[i] == input_ids_T[target_rows_N[i] + 1]`."""
    document_keys: tuple[int, ...]
    """D integers that name the documents wherever they are cut: they key NEFTune's noise."""
    weights_N: torch.Tensor | None = None
    """float32, positive: what each target weighs in the loss; None: each weighs 1."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.input_ids_T.shape[0])

    @property
    def num_targets(self) -> int:
        """N."""
        return int(self.targets_N.shape[0])


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the targets of one or several micro-batches, never means.

    They add up exactly, however the batch was cut.
    """

    loss_sum: torch.Tensor
    """float32 scalar: the sum of the targets' losses (label smoothing included), each times its weight."""
    entropy_sum: torch.Tensor
    """float32 scalar, in nats; not weighted, as it measures the model and not the objective."""
    num_correct: torch.Tensor
    """float32 scalar: targets that were the model's first choice; not weighted."""
    num_targets: int
    weight_sum: torch.Tensor | None = None
    """float32 scalar: the sum of the targets' weights; None: each weighs 1."""

    @property
    def mean_loss(self) -> float:
        """Weighted mean over the targets, of which there is at least one."""
        return float(self.loss_sum) / (self.num_targets if self.weight_sum is None else float(self.weight_sum))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.loss_sum + other.loss_sum,
            self.entropy_sum + other.entropy_sum,
            self.num_correct + other.num_correct,
            self.num_targets + other.num_targets,
            _sum_of_weights(self, other),
        )


def _sum_of_weights(one: LossSums, other: LossSums) -> torch.Tensor | None:
    """Of both; None where neither is weighted."""
    if one.weight_sum is None:
        return None if other.weight_sum is None else other.weight_sum + one.num_targets
    return one.weight_sum + (other.num_targets if other.weight_sum is None else other.weight_sum)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step."""

    sums: LossSums
    grad_norm: float | None
    """Of all trained parameters, before clipping; None where nothing asked for it."""
    num_tokens: int
    num_micro_batches: int
    keys: tuple[int, ...] = ()
    """The examples' indices in their data set."""
    is_skipped: bool = False
    """Its loss or gradient was not finite, and the user's policy is not to step on it."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know; made from SFTConfig by `config.resolve`.  None: the plan chooses."""

    loss_type: str = "nll"
    """"nll", or "dft" (https://huggingface.co/papers/2508.05629)."""
    label_smoothing: float = 0.0
    neftune_noise_alpha: float | None = None
    max_grad_norm: float = 1.0
    """0 or less: no clipping."""
    seed: int = 42
    gradient_checkpointing: bool | None = None
    micro_batch_tokens: int | None = None
    loss_chunk_rows: int | None = None
    recomputed_operations: str | None = None
    """"all", or "cheap": not matrix products and attention."""
    optimizer_implementation: str | None = None
    """"fused", "foreach" or "for-loop"."""
    optimizer_states: str | None = None
    """"device" or "host"."""
    bf16: bool = False
    fp16: bool = False
    """Permission for mixed precision; what is used depends on the device."""
    strict_precision: bool = False
    stochastic_rounding: bool = False
    """What is trained is in bfloat16, and each update is rounded into it stochastically."""
    compile_backend: str | None = None
    """Of torch.compile, for the decoder's layers; None: they are not compiled."""
    compile_mode: str | None = None


PLAN_CHOICES = (
    "gradient_checkpointing",
    "micro_batch_tokens",
    "loss_chunk_rows",
    "recomputed_operations",
    "optimizer_implementation",
    "optimizer_states",
)
"""Of `EngineSettings`, under the names of `SFTConfig`: what the plan chooses where the user does not."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run is executed: what may be chosen freely without changing its mathematics.  Written to `plan.json`."""

    layout: Layout
    micro_batch_tokens: int
    gradient_checkpointing: bool
    """Whether activations are recomputed in the backward pass."""
    loss_chunk_rows: int
    attention: str
    """transformers' name of the attention implementation, or our own."""
    parameter_dtype: str
    compute_dtype: str
    num_threads: int
    device: str
    evaluation_tokens: int | None = None
    """Tokens at once in passes without gradients; None: as in training."""
    per_device_train_batch_size: int | None = None
    """How `total_batch_size` is split where it alone was given; None: as the configuration says."""
    gradient_accumulation_steps: int | None = None
    recomputed_layers: int | None = None
    """With `gradient_checkpointing`: the first so many layers are recomputed whole; None: every layer."""
    recomputes_cheap: bool = False
    """With `gradient_checkpointing`.

    Of layers that are not recomputed whole, cheap operations are: all but products.
    """
    optimizer_implementation: str | None = None
    """"fused", "foreach" or "for-loop": equal up to rounding; None: the optimizer's own."""
    optimizer_states: str = "device"
    """Where they live between updates: "device" or "host"."""
    stochastic_rounding: bool = False
    """Updates are rounded into bfloat16 parameters stochastically: asked for, since it changes the mathematics."""
    predicted_bytes: Mapping[str, int] = field(default_factory=dict)
    """What the worst moment of a step was foreseen to need, by component, and "peak"; empty: it was not simulated."""
    measured_bytes: int | None = None
    """The most that the rehearsal used; None: there was none."""
    pass_bytes: int | None = None
    """What a micro-batch of `pass_tokens` tokens was foreseen to need beside weights, gradients and optimizer states;
    None: it was not simulated, or holds no longer."""
    pass_tokens: int | None = None
    forecast: Mapping[str, Any] = field(default_factory=dict)
    """What `sartor plan --json` would say of this run when it began (docs/memory.md); empty: it was not simulated."""
    compile_backend: str | None = None
    """Of torch.compile, for the decoder's layers; None: they are not compiled."""
    compile_mode: str | None = None
    incidents: tuple[str, ...] = ()
    """What happened when memory ran out: one sentence for each time that the plan was made to need less."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Field name to the sentence that says why it has this value."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One time that memory ran out."""

    step: int
    """The optimizer step, counted from 1; 0 outside of training."""
    phase: str
    cause: str
    """What was raised, in one line."""
    remedy: str
    """What was done before going on."""

    @property
    def sentence(self) -> str:
        """For messages and the plan."""
        when = f"step {self.step}, " if self.step else ""
        return f"{when}{self.phase}: memory ran out ({self.cause}); {self.remedy}"
