"""The trainer's side of the Hub: facts for the card, and pushes at the end and in between."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sartor import compat
from sartor.config import SFTConfig, resolved_configuration
from sartor.engine.traits import base_model, is_adapter
from sartor.errors import RunFolderError
from sartor.hf.base import SessionTrainer
from sartor.hf.construction import TAGS
from sartor.hf.figures import write_figures
from sartor.report import card, staging
from sartor.report import hub as report_hub
from sartor.report.hub import BackgroundPushes
from sartor.run import saving


def write_card(trainer: SessionTrainer, about: dict[str, Any]) -> None:
    """Write README.md into the run folder from what the run knows.

    Args:
        about: the keywords of `create_model_card`; those that are None are filled in.
    """
    args = trainer.args
    inner = base_model(trainer.model)
    base = about.pop("finetuned_from", None) or compat.name_or_path(inner) or None
    name = about.pop("model_name", None) or short_name(args)
    if about.get("dataset_name") is None and about.get("dataset") is None and about.get("dataset_tags") is None:
        about["dataset_name"] = trainer.dataset_id
    if about.get("license") is None and base:
        about["license"] = _license_of(trainer, base)
    about["tags"] = _with_tags(about.get("tags"), getattr(trainer.model, "model_tags", None) or TAGS)
    template = getattr(trainer.processing_class, "chat_template", None)
    summaries = trainer.session.data.summaries
    facts = card.CardFacts(
        model_name=name,
        base_model=base,
        hub_model_id=trainer.hub_model_id,
        adapter=card.adapter_facts(trainer.model.active_peft_config) if is_adapter(trainer.model) else None,
        has_chat_template=template is not None,
        hyperparameters=card.select_hyperparameters(resolved_configuration(args)),
        losses=card.Losses.of(trainer.state.log_history),
        train=summaries.get("train"),
        evaluation=tuple(summary for key, summary in summaries.items() if key != "train"),
        plan=trainer.plan,
        figures=trainer.figures,
        versions=card.installed_versions(*(("peft",) if is_adapter(trainer.model) else ())),
        **about,
    )
    os.makedirs(args.output_dir, exist_ok=True)
    card.write_card(facts, args.output_dir)


def short_name(args: SFTConfig) -> str:
    """What the trained model is called, without its owner."""
    return (args.hub_model_id or Path(args.output_dir).name).split("/")[-1]


def _license_of(trainer: SessionTrainer, base: str) -> str | None:
    """The base model's licence; the Hub is asked once, not at every checkpoint."""
    if base not in trainer.base_licenses:
        trainer.base_licenses[base] = report_hub.base_model_license(base, trainer.args.hub_token)
    return trainer.base_licenses[base]


def _with_tags(asked: str | Iterable[str] | None, own: Iterable[str]) -> list[str]:
    first = [asked] if isinstance(asked, str) else list(asked or ())
    return list(dict.fromkeys([*first, *own]))


def open_repository(trainer: SessionTrainer, token: str | None, private: bool | None) -> None:
    """Create the run's repository, and remember its full id."""
    args = trainer.args
    trainer.hub_model_id = report_hub.open_repository(
        args.output_dir,
        args.hub_model_id,
        token=token if token is not None else args.hub_token,
        private=private if private is not None else args.hub_private_repo,
        timeout_s=args.hub_timeout_s,
    )
    trainer.push_in_progress = BackgroundPushes(args.hub_timeout_s)


def push(
    trainer: SessionTrainer,
    *,
    commit_message: str | None,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
    about: dict[str, Any],
) -> Any:
    """Save, write the card, upload; returns what transformers returns: a `CommitInfo`, or a `Future` of one.

    The model is on the disk before the Hub is asked anything.
    """
    args = trainer.args
    token = token if token is not None else args.hub_token
    made = saving.save_anew(Path(args.output_dir), lambda folder: trainer.save_model(str(folder), _internal_call=True))
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token, private=private)
    _draw(trainer)
    trainer.create_model_card(**about)
    made |= {staging.CARD, *trainer.figures, *([staging.METRICS] if trainer.state.global_step else [])}
    trainer._finish_current_push()
    assert trainer.hub_model_id is not None  # init_hf_repo has set it, or raised
    return report_hub.push_folder(
        args.output_dir,
        trainer.hub_model_id,
        token=token,
        revision=revision if revision is not None else args.hub_revision,
        commit_message=commit_message,
        blocking=blocking,
        made=made,
        create=False,
        timeout_s=args.hub_timeout_s,
    )


def give_up_pushes(trainer: SessionTrainer) -> None:
    """The run ends here: what is being pushed in the background holds it up no more."""
    pushes = getattr(trainer, "push_in_progress", None)
    if isinstance(pushes, BackgroundPushes) and pushes.give_up():
        trainer.say(f"a push to {trainer.hub_model_id} was under way and is given up; what it took is in checkpoints.")


def _draw(trainer: SessionTrainer) -> None:
    """Figures for the card, where there was a training and nobody drew them yet."""
    if trainer.state.log_history and not trainer.figures:
        try:
            write_figures(trainer)
        except RunFolderError as error:  # a card without figures is better than no push
            trainer.say(f"no figures for the card: {error}")


def push_checkpoint(trainer: SessionTrainer, checkpoint: str) -> None:
    """Push a checkpoint that was just saved, as `hub_strategy` says."""
    args, state = trainer.args, trainer.state
    assert trainer.hub_model_id is not None  # the constructor has opened the repository
    if args.save_strategy == "steps":
        message = f"Training in progress, step {state.global_step}"
    else:
        message = f"Training in progress, epoch {int(state.epoch or 0)}"
    trainer.callback_handler.on_push_begin(args, state, trainer.control)
    trainer.push_in_progress.push_checkpoint(
        checkpoint,
        args.output_dir,
        trainer.hub_model_id,
        strategy=str(getattr(args.hub_strategy, "value", args.hub_strategy)),
        commit_message=message,
        always_push=args.hub_always_push,
        token=args.hub_token,
        revision=args.hub_revision,
    )
