"""What a run needs to know, besides what single rooms do; frozen.  `hf/settings.py` makes it of `SFTConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sartor.records import DataSettings, EngineSettings


@dataclass(frozen=True, slots=True)
class Configuration:
    """The user's options as they were resolved, and what follows from a difference where a run is resumed."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Of every option, as JSON can hold it; secrets are masked.  Written to the run folder and to checkpoints."""
    mathematics: frozenset[str] = frozenset()
    """Options that change what is learned."""
    memory: frozenset[str] = frozenset()
    """Options that the plan decides on: the plan of a checkpoint overrules them."""
    optimizer: frozenset[str] = frozenset()
    """Options that optimizer and schedule are made with."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Options of one run, under the names of `SFTConfig` where it has the same."""

    data: DataSettings = field(default_factory=DataSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    configuration: Configuration = field(default_factory=Configuration)

    # --- the optimizer batch ---
    batch_size: int = 8
    """Examples of a device batch."""
    accumulation: int = 1
    """Device batches of an optimizer batch."""
    total_batch_size: int | None = None
    """Set where it alone was given: then the plan chooses how it is split into the two."""
    drop_last: bool = False
    """Whether a last device batch that is not full is left out."""
    sampling: str = "random"
    """"random", "sequential" or "group_by_length"."""
    data_seed: int = 42
    num_train_epochs: float = 3.0
    max_steps: int = -1
    """Overrules the number of epochs where it is positive."""

    # --- optimizer and loss ---
    optimizer: str | None = "adamw_torch"
    """As `SFTConfig.optim` names it; None: the caller's own, of whose states nothing is known."""
    optim_args: str | None = None
    router_aux_loss_coef: float | None = None
    own_loss: bool = False
    """Whether a loss or collator of the user's own decides what is trained, and gets padded batches."""

    # --- evaluation and answers ---
    eval_batch_size: int = 8
    bf16_full_eval: bool = False
    fp16_full_eval: bool = False
    sample_prompts: tuple[str, ...] = ()
    sample_max_new_tokens: int = 64

    # --- what goes wrong, and what is saved ---
    rehearse: bool | None = None
    on_non_finite: str = "stop"
    on_full_disk: str = "stop"
    saves: bool = True
    """Whether checkpoints are saved at all."""
    save_total_limit: int | None = None
    save_only_model: bool = False
    save_in_background: bool = True
    accept_changes: frozenset[str] = frozenset()

    @property
    def examples_per_step(self) -> int:
        """Of an optimizer batch that is full."""
        return self.batch_size * self.accumulation
