"""`SFTTrainer`: the only place where the rooms meet, and the only one that knows transformers' Trainer.

A real subclass of `transformers.Trainer`, so that callbacks, integrations and `isinstance` checks work; but `train`,
`evaluate` and `predict` drive our own loop over our own engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PredictionOutput, TrainOutput

from sartor.config import SFTConfig
from sartor.engine.objectives import Objective
from sartor.engine.precision import Masters
from sartor.errors import ConfigurationError, RunFolderError
from sartor.hf import evaluating, hub, training
from sartor.hf.arguments import as_sft_config, take_old_arguments
from sartor.hf.base import SessionTrainer
from sartor.hf.callbacks import AskWhileTraining, Callbacks
from sartor.hf.checks import Given
from sartor.hf.construction import TAGS, Parts, build
from sartor.hf.figures import memory_of
from sartor.hf.overrides import overrides_loss, refuse_overrides
from sartor.hf.padded import default_collator
from sartor.hf.settings import run_settings
from sartor.hf.weighted import refuse_with_own_loss
from sartor.masking import masked_errors
from sartor.report import figures, memory_figures
from sartor.run import profiling
from sartor.run.sampling import SampleAnswers
from sartor.run.session import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SFTTrainer(SessionTrainer):
    """Supervised fine-tuning of a causal language model, with the arguments of trl's `SFTTrainer`.

    Args:
        model: a Hub id or folder (also an adapter's), a model, or a `PeftModel`.  A model that is passed in is
            trained in place: `trainer.model is model`.
        args: options; `TrainingArguments` are accepted.  Default: `SFTConfig` with an output folder named after the
            model.
        data_collator: makes padded batches of prepared rows.  With one, rows are padded and full logits are computed.
        train_dataset: `Dataset`, `IterableDataset` (needs `max_steps`), `DatasetDict` (its `train`), a list of dicts,
            the path of a file or folder, or a list of (one of these, weight), which are mixed; see docs/data.md.
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

    @masked_errors()
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
        given = Given(
            model=model,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            quantization_config=quantization_config,
        )
        parts = build(
            given, args, processing_class=processing_class, peft_config=peft_config, formatting_func=formatting_func
        )
        self.resolved = parts.settings
        self.dataset_id = parts.dataset_id
        self.pending_metrics = {}
        self.base_licenses = {}
        super().__init__(
            model=parts.model,
            args=args,
            data_collator=data_collator or default_collator(parts.tokenizer),
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
        self.session = self._made_session(parts)
        self.callback_handler = Callbacks(self)
        if self.model.device != args.device:  # `*_full_eval` makes transformers leave the model where it is
            self._move_model_to_device(self.model, args.device)
        self.has_own_collator = data_collator is not None
        self.uses_padded_batches = (
            data_collator is not None or compute_loss_func is not None or overrides_loss(self, SFTTrainer)
        )
        for data in (self.train_dataset, self.eval_dataset):
            refuse_with_own_loss(self, data)
        self.refresh()
        if args.sample_prompts:
            self.sample_answers = SampleAnswers(self.session)
            self.add_callback(AskWhileTraining(self, self.sample_answers, args.sample_steps))
        self.model.add_model_tags(self._tag_names)
        if self.uses_padded_batches:
            self.say(
                "an own loss or data_collator: it gets padded batches and full logits, as Trainer makes them. That "
                "costs the memory and time that flat rows and the chunked loss save."
            )

    def _made_session(self, parts: Parts) -> Session:
        settings, folder = run_settings(self.args, parts.settings), Path(self.args.output_dir)

        def say(message: str) -> None:
            self.say(message)  # which may be replaced

        return Session(self.model, parts.tokenizer, settings, parts.preparation, folder, Masters(self.model), say)

    # --- training ----------------------------------------------------------------------------------------------------

    @masked_errors()
    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; returns the number of steps, the mean loss and the last log.

        Args:
            resume_from_checkpoint: True goes on from the newest checkpoint in `output_dir` that is whole; a path from
                that one; "if_any" as True, but from the start where there is none.
            trial: not supported.
            ignore_keys_for_eval: outputs of the model that `compute_metrics` does not get.

        Raises:
            ConfigurationError: the checkpoint is of another run, and what differs was not accepted
                (`accept_changes`); or a hyperparameter trial is asked for.
            RunFolderError: there is no checkpoint to go on from, or it is damaged; or the disk is full.
            DataError, NonFiniteError: an optimizer batch has no target, or its loss is not finite.
            KeyboardInterrupt: again, after a checkpoint where `save_strategy` is not "no"; SIGTERM is a SystemExit.
        """
        if trial is not None:
            raise ConfigurationError("trial: hyperparameter search is not supported; run one SFTTrainer per trial.")
        refuse_overrides(self, SFTTrainer)
        return training.train(self, ignore_keys_for_eval, resume_from_checkpoint)

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
        objective = Objective.of(self.resolved.engine)
        if objective.is_plain or self.compute_loss_func is not None or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = objective.mean_loss(outputs["logits"], labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    # --- evaluation --------------------------------------------------------------------------------------------------

    @masked_errors()
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
            dataset = self.session.data.prepare_evaluation(eval_dataset)
        if dataset is None:
            raise ConfigurationError("evaluate() has no data: pass eval_dataset to it, or to the constructor.")
        if not isinstance(dataset, Mapping):
            return evaluating.evaluate(self, dataset, prefix=metric_key_prefix, ignore_keys=ignore_keys)
        metrics: dict[str, float] = {}
        for name, part in dataset.items():
            override = part if eval_dataset is not None else name
            found = self.evaluate(override, ignore_keys, f"{metric_key_prefix}_{name}")
            twice = sorted((metrics.keys() & found.keys()) - {"epoch"})
            if twice:  # a metric of the user's own: ours never collide
                self.say(f"{', '.join(twice)}: measured for two data sets of eval_dataset; the later one is kept.")
            metrics.update(found)
        return metrics

    @masked_errors()
    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Loss and token accuracy of a data set.

        Logits (`predictions`) are kept only where `compute_metrics` or `preprocess_logits_for_metrics` was given:
        they take rows x length x vocabulary x 4 bytes.
        """
        dataset = self.session.data.prepare(test_dataset, "test")
        return evaluating.predict(self, dataset, prefix=metric_key_prefix, ignore_keys=ignore_keys)

    # --- what a run leaves -------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to the state, the callbacks and `metrics.jsonl`."""
        logs.update(self.pending_metrics)
        self.pending_metrics = {}
        super().log(logs, start_time)
        if self.train_loop is not None:
            self.train_loop.metrics_writer.write(self.state.global_step, logs)

    def profile(self) -> dict[str, Any]:
        """Look at the memory of this training's worst micro-batch, foreseen and measured, without training.

        Returns what `plot_memory` shows; see docs/memory.md.

        Raises:
            ConfigurationError: which rows come is not known beforehand, or an own loss decides.
            OutOfMemoryError: not even one document goes through.
        """
        if self.engine is not None:
            raise ConfigurationError("profile() is for before or after train(), not for while it runs.")
        session, made_optimizer = self.refresh(), self.optimizer is None
        try:
            profiling.profile(session, self.data_loader(), self.made_optimizer, self._num_steps)
        finally:
            if made_optimizer:
                self.optimizer = None
        assert session.memory is not None
        return session.memory

    def _num_steps(self) -> int:
        """Optimizer steps of the training."""
        args, collate = self.args, self.data_collator
        loader = evaluating.lazy_loader(
            self.train_dataset, self._train_batch_size, collate, drop_last=args.dataloader_drop_last
        )
        return int(self.set_initial_training_values(args, loader)[-1])

    def plot_memory(self, path: str | Path | None = None) -> Figure:
        """Memory over one step, by component, foreseen and measured; written where a path is given (PNG, or .svg).

        Without a rehearsal (`profile()`, or training with `rehearse=True`) it is foreseen alone, and the figure says
        so.

        Raises:
            ConfigurationError: an own loss decides what goes through, or this model cannot be simulated.
        """
        return memory_figures.plot_memory(memory_of(self), path)

    def plot_lengths(self, path: str | Path | None = None) -> Figure:
        """How long the prepared training rows are; written where a path is given.

        Raises:
            ConfigurationError: they are a stream.
        """
        self.refresh()
        examples = self.data_loader().examples
        if examples is None:
            raise ConfigurationError("plot_lengths() needs rows that can be counted, and train_dataset is a stream.")
        return figures.plot_lengths(examples.lengths.tolist(), path, self.args.max_length)

    def plot_loss(self, path: str | Path | None = None) -> Figure:
        """Training and evaluation loss by step; written where a path is given."""
        return figures.plot_loss(self.state.log_history, path)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer to a folder that `from_pretrained` loads, in the dtype the model arrived in.

        No pickle.  Where a trained model cannot be saved so, its weights are left in a subfolder `rescued-STEP`, which
        the error names.
        """
        folder = output_dir or self.args.output_dir
        try:
            self.session.save(folder)
        except Exception as error:
            if not self.is_in_train and self.state.global_step > 0:
                self.keep_weights(Path(folder), error)
            raise
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.create_model_card(model_name=hub.short_name(self.args))
        if self.train_loop is None:
            raise RunFolderError("checkpoints are saved while train() runs: use save_model() before and after it.")
        folder = self.train_loop.checkpoints.save()
        if self.args.push_to_hub and self.pushes:
            self._push_from_checkpoint(str(folder))

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

    @masked_errors()
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the run's repository on the Hub where there is none."""
        hub.open_repository(self, token, private)

    @masked_errors()
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
