"""`SFTTrainer`: the only place where the rooms meet, and the only one that knows transformers' Trainer.

A real subclass of `transformers.Trainer`, so that callbacks, integrations and `isinstance` checks work; but `train`,
`evaluate` and `predict` drive our own loop over our own engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PredictionOutput, SaveStrategy, TrainOutput, align_special_tokens

from sartor.config import SFTConfig, resolved_configuration
from sartor.engine.flops import measured_matrix_rate, step_flops
from sartor.engine.precision import Masters
from sartor.engine.step import Engine
from sartor.engine.traits import base_model
from sartor.errors import ConfigurationError
from sartor.memory.allocator import retaining
from sartor.records import Plan
from sartor.run.loop import OptimizerBatch, loop
from sartor.run.stepper import EngineStepper, Updater, count_targets
from sartor.trainer import evaluating, hub, saving, voice
from sartor.trainer.arguments import as_sft_config, take_old_arguments
from sartor.trainer.construction import TAGS, build
from sartor.trainer.driving import Drive, fresh_state
from sartor.trainer.examples import Examples, stream_batches
from sartor.trainer.journal import Journal
from sartor.trainer.overrides import overrides_loss, refuse_overrides
from sartor.trainer.padded import PaddedStepper
from sartor.trainer.setup import announce, engine_for

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SFTTrainer(Trainer):
    """Supervised fine-tuning of a causal language model, with the arguments of trl's `SFTTrainer`.

    Args:
        model: a Hub id or folder (also an adapter's), a model, or a `PeftModel`.  A model that is passed in is
            trained in
            place: `trainer.model is model`.
        args: options; `TrainingArguments` are accepted.  Default: `SFTConfig` with an output folder named after the
            model.
        data_collator: makes padded batches of prepared rows.  With one, rows are padded and full logits are computed.
        train_dataset: `Dataset`, `IterableDataset` (needs `max_steps`), a list of dicts, or a file's path; rows with
            `messages`, `prompt` + `completion`, `text` or `input_ids`.
        eval_dataset: one such data set, or a dictionary of several.
        processing_class: the tokenizer; default: the model's.
        compute_loss_func: called as `f(outputs, labels, num_items_in_batch=...)`; padded batches and full logits.
        compute_metrics: called with an `EvalPrediction`; evaluation then computes and keeps full logits.
        callbacks: added to transformers' default ones.
        optimizers: an optimizer and a scheduler, or None for those that `args` describe.
        optimizer_cls_and_kwargs: an optimizer's class and keyword arguments, in place of `args.optim`.
        preprocess_logits_for_metrics: called with logits and labels before they are kept for `compute_metrics`.
        quantization_config: used when `model` is given by name.
        peft_config: trains an adapter in place of the weights.
        formatting_func: makes a text of a row, which is then trained as a whole.
        **old_arguments: names that older versions of trl had (`tokenizer`, `max_seq_length`, ...), each with a warning.

    Raises:
        ConfigurationError, DataError, ModelError: everything that is wrong, found before a model given by name is
            loaded.
        OverrideError: a subclass overrides a method that is never called here.
    """

    _tag_names: ClassVar[list[str]] = list(TAGS)
    _name = "SFT"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        **old_arguments: Any,
    ) -> None:
        refuse_overrides(self, SFTTrainer)
        changes, processing_class = take_old_arguments(old_arguments, processing_class)
        args = as_sft_config(args, model, changes)
        parts = build(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
            has_collator=data_collator is not None,
        )
        self.settings = parts.settings
        self.preparation = parts.preparation
        self.dataset_id = parts.dataset_id
        self.masters = Masters(parts.model)
        self.engine: Engine | None = None
        self.plan: Plan | None = None
        self.journal: Journal | None = None
        self.pending_metrics: dict[str, float] = {}
        self.total_train_tokens = 0
        self.flops_of_last_batch = 0.0
        super().__init__(
            model=parts.model,
            args=args,
            data_collator=data_collator or evaluating.default_collator(parts.tokenizer),
            train_dataset=parts.train_dataset,
            eval_dataset=parts.eval_dataset,
            processing_class=parts.tokenizer,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.model.device != args.device:  # `*_full_eval` makes transformers leave the model where it is
            self._move_model_to_device(self.model, args.device)
        self.uses_padded_batches = (
            data_collator is not None or compute_loss_func is not None or overrides_loss(self, SFTTrainer)
        )
        self.model.add_model_tags(self._tag_names)
        if self.uses_padded_batches:
            self.say(
                "an own loss or data_collator: it gets padded batches and full logits, as Trainer makes them. "
                "That costs the memory and "
                "time that flat rows and the chunked loss save."
            )

    # --- training ----------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; returns the number of steps, the mean loss and the last log.

        Raises:
            ConfigurationError: resuming, or a hyperparameter trial, is asked for: neither is supported yet.
            DataError, NonFiniteError: an optimizer batch has no target, or its loss is not finite.
            KeyboardInterrupt: again, after a checkpoint where `save_strategy` is not "no".
        """
        if resume_from_checkpoint:
            raise ConfigurationError(
                f"resume_from_checkpoint={resume_from_checkpoint!r}: resuming is not supported yet. Start a new "
                "run from the checkpoint's "
                "weights: model=<its folder>; its schedule and optimizer states start anew."
            )
        if trial is not None:
            raise ConfigurationError("trial: hyperparameter search is not supported; run one SFTTrainer per trial.")
        refuse_overrides(self, SFTTrainer)
        self._memory_tracker.start()
        self.is_in_train = True
        align_special_tokens(self.model, self.processing_class)
        longest = 0 if self._is_stream() else Examples(self.train_dataset).longest_document()
        with ExitStack() as stack:
            stack.enter_context(retaining(wanted=self.args.device.type == "cpu"))
            engine = stack.enter_context(engine_for(self, longest_tokens=longest, trains=True))
            self.plan = engine.plan
            drive, events = self._start(engine, ignore_keys_for_eval)
            stack.callback(self._end)
            try:
                return drive.run(events)
            except KeyboardInterrupt:
                if self.args.save_strategy != SaveStrategy.NO and self.state.global_step > drive.last_saved:
                    drive.save()
                    self.say(f"interrupted: checkpoint-{self.state.global_step} is saved in {self.args.output_dir}")
                raise

    def _start(self, engine: Engine, ignore_keys: list[str] | None) -> tuple[Drive, Any]:
        """State, optimizer, schedule and loop of a run, in the order in which Trainer makes them."""
        args = self.args
        loader = evaluating.lazy_loader(
            self.train_dataset, self._train_batch_size, self.data_collator, drop_last=args.dataloader_drop_last
        )
        num_train_epochs, _, _, num_train_samples, _, steps_in_epoch, max_steps = self.set_initial_training_values(
            args, loader
        )
        fresh_state(self, max_steps, num_train_epochs)
        if getattr(self, "_created_lr_scheduler", False):  # of an earlier train(); one that was passed in stays
            self.lr_scheduler = None
            self._created_lr_scheduler: bool = False
        self.create_optimizer()
        self.create_scheduler(num_training_steps=max_steps)
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, self.optimizer, self.lr_scheduler
        handler.train_dataloader = loader
        self.total_train_tokens = 0
        self._initial_num_input_tokens_seen = 0
        announce(self, engine.plan)
        saving.write_json(os.path.join(args.output_dir, saving.CONFIGURATION_NAME), resolved_configuration(args))
        rate = measured_matrix_rate(engine.device, engine.compute_dtype)
        self.journal = Journal(os.path.join(args.output_dir, saving.METRICS_NAME), engine.device, rate)
        drive = Drive(
            self,
            journal=self.journal,
            steps_in_epoch=steps_in_epoch or 1,
            num_train_samples=num_train_samples,
            ignore_keys_for_eval=ignore_keys,
            measures_targets=not self.uses_padded_batches,
        )
        return drive, loop(range(num_train_epochs), self._batches, self._stepper(engine))

    def _end(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        self.model.zero_grad(set_to_none=True)
        self.is_in_train = False

    def _stepper(self, engine: Engine) -> EngineStepper | PaddedStepper:
        updater = Updater(
            self.optimizer,
            self.lr_scheduler,
            engine,
            self.args.max_grad_norm,
            steps_on_metrics=isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            or type(self.lr_scheduler).__name__ == "GreedyLR",
        )
        if not self.uses_padded_batches:
            return EngineStepper(engine, updater)
        rows = None if self._is_stream() else self._collator_row
        return PaddedStepper(self, engine, updater, self.data_collator, rows)

    def _collator_row(self, index: int) -> dict[str, Any]:
        """A prepared row for a user's collator: without columns it does not expect, unless they asked for all."""
        row: dict[str, Any] = self.train_dataset[index]
        if not self.args.remove_unused_columns or "input_ids" not in row:
            return row
        return {name: row[name] for name in ("input_ids", "labels", "seq_lengths") if name in row}

    def _batches(self, epoch: int) -> Iterator[OptimizerBatch]:
        args = self.args
        size, accumulation = self._train_batch_size, args.gradient_accumulation_steps
        if self._is_stream():
            batches = stream_batches(
                self.train_dataset,
                epoch,
                batch_size=size,
                accumulation=accumulation,
                drop_last=args.dataloader_drop_last,
            )
        else:
            batches = Examples(self.train_dataset).batches(
                epoch,
                batch_size=size,
                accumulation=accumulation,
                seed=args.data_seed if args.data_seed is not None else args.seed,
                strategy=str(args.train_sampling_strategy),
                drop_last=args.dataloader_drop_last,
            )
        assert self.engine is not None
        weights = base_model(self.model).num_parameters(exclude_embeddings=True)
        for batch in batches:
            lengths = [length for e in batch.examples for length in e.seq_lengths or (len(e.input_ids),)]
            targets = sum(count_targets(example) for example in batch.examples)
            self.flops_of_last_batch = step_flops(self.engine.traits, lengths, targets)
            self.current_flos += 6 * weights * sum(lengths)
            yield batch

    def _is_stream(self) -> bool:
        return not hasattr(self.train_dataset, "__len__")

    def count_tokens(self, num_tokens: int) -> None:
        """Count the tokens of a step, padding not included."""
        self.total_train_tokens += num_tokens
        if self.args.include_num_input_tokens_seen != "no":
            self.state.num_input_tokens_seen += num_tokens

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of a padded batch with full logits: what an override gets from `super()`, and evaluation with logits.

        Training without an override never comes here: the engine computes the loss in chunks.
        """
        inputs = {**inputs, "use_cache": False}
        inputs.pop("seq_lengths", None)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, token accuracy and entropy of a data set, weighted by tokens; each of several sets has keys of its own.

        Args:
            eval_dataset: rows as for the constructor, the name of one of the constructor's sets, or None for those.
            ignore_keys: outputs of the model that `compute_metrics` does not get.
            metric_key_prefix: first part of the keys.
        """
        if (
            isinstance(eval_dataset, str)
            and isinstance(self.eval_dataset, Mapping)
            and eval_dataset in self.eval_dataset
        ):
            dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            dataset = self.eval_dataset
        else:
            dataset = self.preparation.prepare_evaluation(eval_dataset)
        if dataset is None:
            raise ConfigurationError("evaluate() has no data: pass eval_dataset to it, or to the constructor.")
        if not isinstance(dataset, Mapping):
            return evaluating.evaluate_one(self, dataset, prefix=metric_key_prefix, ignore_keys=ignore_keys)
        metrics: dict[str, float] = {}
        for name, part in dataset.items():
            override = part if eval_dataset is not None else name
            metrics.update(self.evaluate(override, ignore_keys, f"{metric_key_prefix}_{name}"))
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Loss and token accuracy of a data set.

        Logits (`predictions`) are kept only where `compute_metrics` or `preprocess_logits_for_metrics` was given:
        they take rows x length x vocabulary x 4 bytes.
        """
        dataset = self.preparation.prepare(test_dataset, "test")
        return evaluating.predict_one(self, dataset, prefix=metric_key_prefix, ignore_keys=ignore_keys)

    # --- what a run leaves -------------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """Tell the user one thing."""
        if self.is_world_process_zero():
            voice.say(message)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to the state, the callbacks and `metrics.jsonl`."""
        logs.update(self.pending_metrics)
        self.pending_metrics = {}
        super().log(logs, start_time)
        if self.journal is not None:
            self.journal.write(self.state.global_step, logs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer to a folder that `from_pretrained` loads, in the dtype the model arrived in.

        No pickle.
        """
        saving.save_weights(self, output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.create_model_card()
        saving.save_checkpoint(self)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        language: str | list[str] | None = None,
        license: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the model card, README.md in the run folder; the keywords are trl's and transformers'."""
        about = {
            "model_name": model_name,
            "dataset_name": dataset_name,
            "tags": tags,
            "language": language,
            "license": license,
            "finetuned_from": finetuned_from,
            "tasks": tasks,
            "dataset_tags": dataset_tags,
            "dataset": dataset,
            "dataset_args": dataset_args,
        }
        if self.is_world_process_zero():
            hub.write_card(self, about)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the run's repository on the Hub where there is none."""
        hub.open_repository(self, token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload model, tokenizer, card and metrics; never rows or sample answers.

        Args:
            **kwargs: keywords of `create_model_card`.

        Returns:
            A `CommitInfo`, or with `blocking=False` a `Future` of one.

        Raises:
            HubError: the Hub refused or cannot be reached; says what to do, and never the token.
        """
        return hub.push(
            self,
            commit_message=commit_message,
            blocking=blocking,
            token=token,
            revision=revision,
            private=private,
            about=kwargs,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        hub.push_checkpoint(self, checkpoint_folder)
