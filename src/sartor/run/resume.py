"""Going on from a checkpoint: finding it, seeing that it belongs to this run, and putting everything back.

In: what `train(resume_from_checkpoint=...)` was given.  Out: model, optimizer and schedule that are, bit for bit, where
they were.  A difference that changes what is learned is an error that names it, until the user accepts it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sartor import compat
from sartor.device import kind_of
from sartor.engine.traits import is_adapter
from sartor.errors import ConfigurationError, ModelError, RunFolderError
from sartor.masking import same_but_for_secrets
from sartor.memory.plan import plan_of
from sartor.optim.host_states import HostStates
from sartor.optim.registry import set_implementation
from sartor.records import Plan
from sartor.run import checked_state, checkpoint, device_batch, sampling, saving
from sartor.run.checkpoint_writer import saved_tensors
from sartor.run.fingerprints import WHAT, fingerprints, frozen_digests, tensor_digest, versions
from sartor.run.session import Session
from sartor.run.settings import RunSettings

IF_ANY = "if_any"
"""`resume_from_checkpoint="if_any"`: the newest checkpoint, or from the start where there is none."""
_PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
_OF_THE_PLAN = frozenset({"device", "bf16", "fp16", "strict_precision"})
"""What a plan is made for: where one of them was changed and accepted, it holds no longer."""
_START = (
    "start anew with resume_from_checkpoint='if_any' (--resume if_any), which goes on where there is one that is "
    "whole, and else begins at the first step"
)


@dataclass(frozen=True)
class Resumption:
    """A verified checkpoint, read, that this run may go on from."""

    folder: Path
    content: Mapping[str, Any]
    """What `Checkpoints` saved."""
    accepted: frozenset[str]
    """Names of what differs and may."""
    frozen: tuple[str, ...] = ()
    """Parameters that are not trained and differ, which the checkpoint holds as they were."""

    @property
    def plan(self) -> Plan | None:
        """The frozen plan; None on another kind of device, or in another precision, for which a new one is made."""
        return plan_of(self.content["plan"]) if self.accepted.isdisjoint(_OF_THE_PLAN) else None


def find(
    session: Session,
    asked: str | bool | os.PathLike[str] | None,
    check: Callable[[Path, Mapping[str, Any]], None] = lambda path, content: None,
) -> Resumption | None:
    """The checkpoint that was asked for, verified, read and compared; None to start anew.

    Args:
        session: of the run that is to go on; gets the split of the checkpoint's optimizer batch.
        asked: None or False; True for the newest one in the run folder; "if_any"; or the folder of one.
        check: looks at what else lies in a checkpoint, given its folder and content, before anything is changed; raises
            `DamagedError` where no run writes that.

    Raises:
        RunFolderError: there is none, or it is damaged.
        ConfigurationError: it is of another run, or of another program; names what differs.
    """
    folder, say = session.folder, session.say
    _settle(folder, say)
    if not asked:
        return None
    if asked is True or (asked == IF_ANY and not Path(asked).is_dir()):
        path = _newest(folder, say, may_be_none=asked == IF_ANY)
    else:
        path = _named(Path(asked))
    if path is None:
        return None
    with unfit(path):
        content = checkpoint.read_run(path)
        check(path, content)
        _see_attention(session.model, content["plan"])
    session.settings = device_batch.kept(session.settings, content["plan"], content["settings"])
    willing = session.settings.accept_changes
    frozen, lost = _frozen(session.model, content, path)
    if frozen and "model" not in willing:
        say(f"{_shortened(frozen)}: not trained, and not as in {path.name}, which holds them: they are put back.")
    elif "model" in willing:
        frozen, lost = (), sorted([*frozen, *lost])
    now = fingerprints(session.data, session.model, session.tokenizer, own_loss=session.settings.own_loss)
    accepted = _compare(session.settings, now, content, path, lost, say)
    _take_metrics(folder, content["metrics_bytes"], path, say)
    if path.parent.resolve() == folder.resolve():
        for later in checkpoint.later_than(path):
            what = "step" if checkpoint.step_of(later) > checkpoint.step_of(path) else "run"
            say(f"{later} is of a later {what} than {path.name}: it is kept as {_abandon(later)}.")
    return Resumption(path, content, accepted, frozen)


@contextmanager
def unfit(path: Path) -> Iterator[None]:
    """Say of which checkpoint something is wrong, and what to do.

    Raises:
        RunFolderError: in place of DamagedError.
    """
    try:
        yield
    except checkpoint.DamagedError as error:
        raise RunFolderError(
            f"{path} cannot be gone on from: {error}. No run writes such a checkpoint: choose another one, from a "
            "place that you trust."
        ) from error


def _see_attention(model: Any, plan: Mapping[str, Any]) -> None:
    """See that the plan asks for no attention from the Hub, whose code would be run, but for this run's own."""
    attention = plan["attention"]
    if "/" in attention and attention != compat.attention_of(model.config):
        raise checkpoint.DamagedError(
            f"run_state/state.json: /plan/attention is {attention!r}, which is not this run's"
        )


def _settle(folder: Path, say: Callable[[str], None]) -> None:
    """Put in order what a run that was killed in a save left in the folder, and say what."""
    with saving.explained(folder):
        for name, place in checkpoint.settle(folder).items():
            what = "it is incomplete, and deleted" if place is None else f"it is whole, and kept as {place.name}"
            say(f"{folder / name} was being written or replaced when the run ended: {what}.")


def _abandon(folder: Path) -> Path:
    with saving.explained(folder):
        return checkpoint.set_aside(folder, "abandoned")


def _named(path: Path) -> Path:
    """A checkpoint that the user named.

    Raises:
        RunFolderError: it is not there, or damaged.
        ConfigurationError: it was written by another program, or holds the model alone.
    """
    if not path.is_dir():
        raise RunFolderError(f"resume_from_checkpoint={os.fspath(path)!r}: there is no such folder.")
    if not checkpoint.has_manifest(path):
        raise ConfigurationError(_foreign(path))
    try:
        checkpoint.verify(path)
    except checkpoint.DamagedError as error:
        raise RunFolderError(
            f"{path} is damaged: {error}. Choose an earlier checkpoint, or resume_from_checkpoint=True, which takes "
            "the newest that is whole."
        ) from error
    if not checkpoint.has_state(path):
        raise ConfigurationError(
            f"{path} holds the model alone (save_only_model=True): a new run can start from it, with "
            f"model={os.fspath(path)!r}."
        )
    return path


def _foreign(path: Path) -> str:
    pickled = [name for name in _PICKLES if (path / name).exists()]
    if not pickled:
        missing = f"no {checkpoint.MANIFEST_NAME}, and no {checkpoint.STATE_FOLDER}"
        return f"{path} is no checkpoint of a run: it holds {missing}."
    return (
        f"{path} was written by transformers or trl. Its {', '.join(pickled)} {'is' if len(pickled) == 1 else 'are'} "
        "pickled, and a pickle can run any code when it is loaded, so it is not. Its weights can be started from: "
        f"model={os.fspath(path)!r}, with optimizer and schedule anew."
    )


def _newest(folder: Path, say: Callable[[str], None], *, may_be_none: bool) -> Path | None:
    """The newest whole checkpoint of a run folder; damaged ones are told, and set aside."""
    found = checkpoint.newest(folder)
    foreign = [path for path, _ in found.damaged if not checkpoint.has_manifest(path) and _is_foreign(path)]
    if found.path is None and not may_be_none:
        if foreign:
            raise ConfigurationError(_foreign(foreign[0]))
        if not found.damaged:
            raise RunFolderError(f"there is no checkpoint in {folder} to go on from: {_START}.")
        what = "; ".join(f"{path.name}: {problem}" for path, problem in found.damaged)
        raise RunFolderError(f"no checkpoint in {folder} can be gone on from ({what}): {_START}.")
    for path, problem in found.damaged:
        with saving.explained(path):
            place = checkpoint.set_aside(path, "damaged")
        say(f"{path} is damaged: {problem}. It is left out, and kept as {place}.")
    if found.path is None:
        say(f"there is no checkpoint in {folder} to go on from: the run starts anew (resume 'if_any').")
        _cut_metrics(folder / saving.METRICS_NAME, 0)
    return found.path


def _is_foreign(path: Path) -> bool:
    return any((path / name).exists() for name in _PICKLES)


# --- comparing -----------------------------------------------------------------------------------------------------


def _frozen(model: Any, content: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], list[str]]:
    """Parameters that are not trained and differ: (those that the checkpoint holds as they were, all others).

    A row that was added to an embedding begins at random, and is another one each time that the model is made.
    """
    then, now = content["frozen"], frozen_digests(model)
    differ = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    found = tuple(name for name, value in _saved_frozen(model, path, differ) if tensor_digest(value) == then.get(name))
    return found, [name for name in differ if name not in found]


def _saved_frozen(model: Any, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each of these parameters that a checkpoint's model files hold.

    An adapter's parameters are there without its name: `q_proj.lora_A.weight` for `q_proj.lora_A.default.weight`.
    """
    from safetensors import safe_open

    places = saved_tensors(folder) if names else {}
    adapters = model.peft_config if is_adapter(model) else ()
    for name in names:
        short = next((name.replace(f".{one}.", ".") for one in adapters if f".{one}." in name), name)
        key = name if name in places else short
        if key in places:
            with safe_open(places[key], "pt") as file:
                yield name, file.get_tensor(key)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _compare(
    settings: RunSettings,
    current: Mapping[str, str],
    content: Mapping[str, Any],
    path: Path,
    lost: Sequence[str],
    say: Callable[[str], None],
) -> frozenset[str]:
    """What differs from the run that wrote the checkpoint, and was accepted.

    Args:
        settings: of the run that goes on.
        current: its fingerprints.
        content: of the checkpoint.
        path: of the checkpoint.
        lost: parameters that are not trained, differ, and cannot be put back.
        say: tells the user one thing.

    Raises:
        ConfigurationError: something differs and was not accepted, or a name to accept is unknown.
    """
    willing, configuration, before = settings.accept_changes, settings.configuration, content["settings"]
    unknown = sorted(willing - WHAT.keys() - configuration.values.keys())
    if unknown:
        raise ConfigurationError(
            f"accept_changes: {', '.join(unknown)} is neither an option nor one of {', '.join(WHAT)}."
        )
    problems = {
        name: f"{name} is {new!r}, and was {old!r}"
        for name, (old, new) in _changed(before, configuration.values, configuration.mathematics).items()
    }
    for name, digest in content["fingerprints"].items():
        if current.get(name) != digest:
            told = f" ({current.get(name)}, and was {digest})" if name in ("loss", "device") else ""
            problems[name] = f"{name}: {WHAT[name]} is not what it was{told}"
    if lost:
        problems["model"] = f"model: {WHAT['model']} is not what it was: {_shortened(lost)} (frozen)"
    refused = [text for name, text in problems.items() if name not in willing]
    if refused:
        names = " ".join(sorted(name for name in problems if name not in willing))
        *others, last = (f"{text}, when {path.name} was written" for text in refused)
        which = "This changes what is learned: put it back, or accept it"
        if others:
            which = "These change what is learned: put them back, or accept them"
        raise ConfigurationError([*others, f"{last}. {which} with accept_changes={names.split()}"])
    for text in problems.values():
        say(f"accepted: {text}")
    _tell_harmless(content["versions"], say)
    overruled = sorted(_changed(before, configuration.values, configuration.memory))
    if overruled:
        say(f"{', '.join(overruled)} changed, and the plan of the checkpoint is kept: a resumed run is cut as before.")
    return frozenset(problems)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], names: frozenset[str]) -> dict[str, tuple[Any, Any]]:
    """Those of these options that differ: {name: (value in the checkpoint, value now)}; secrets are no difference."""
    if before.get("max_steps", -1) > 0 and now.get("max_steps", -1) > 0:  # which overrule epochs
        names -= {"num_train_epochs"}
    return {
        name: (before[name], value)
        for name, value in now.items()
        if name in names and name in before and not same_but_for_secrets(before[name], value)
    }


def _tell_harmless(before: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Versions that differ change no mathematics."""
    others = [
        f"{name} {version} (was {before.get(name)})"
        for name, version in versions().items()
        if before.get(name) != version
    ]
    if others:
        say(f"other versions than in the checkpoint, which may change last bits: {', '.join(others)}")


# --- metrics -------------------------------------------------------------------------------------------------------


def _take_metrics(folder: Path, num_bytes: int, path: Path, say: Callable[[str], None]) -> None:
    """Make `metrics.jsonl` what it was when the checkpoint was written; in another folder, sample answers come too."""
    ours = folder / saving.METRICS_NAME
    theirs = path.parent / saving.METRICS_NAME
    if path.parent.resolve() != folder.resolve() and theirs.exists():
        for file in (theirs, theirs.with_name(sampling.JSON_NAME)):
            if file.exists() and (file.is_symlink() or not file.is_file()):
                raise RunFolderError(f"{file} is no plain file, and is not copied: put a file there, or move it away.")
        if ours.exists() and ours.stat().st_size:
            raise RunFolderError(
                f"{ours} holds the metrics of another run: choose another output_dir to go on from {path}."
            )
        with saving.explained(ours):
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(theirs, ours)
            if (answers := theirs.with_name(sampling.JSON_NAME)).exists():
                shutil.copyfile(answers, ours.with_name(sampling.JSON_NAME))
    length = ours.stat().st_size if ours.exists() else 0
    if length < num_bytes:
        say(f"{ours} has {length} bytes, and had {num_bytes} when {path.name} was written: what was there is lost.")
    _cut_metrics(ours, num_bytes)


def _cut_metrics(path: Path, num_bytes: int) -> None:
    if path.exists() and path.stat().st_size > num_bytes:
        with saving.explained(path):
            os.truncate(path, num_bytes)


# --- putting back --------------------------------------------------------------------------------------------------


def restore_weights(model: Any, resumption: Resumption) -> None:
    """Masters, and buffers that are saved, into the model that is being trained.

    Raises:
        ModelError: the checkpoint has other parameters than the model.
    """
    content = resumption.content
    stored = dict(content["parameters"])
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    missing = sorted(set(trained) ^ (set(stored) | set(content["saved_parameters"])))
    if missing:
        raise ModelError(
            f"{resumption.folder} has other trained parameters than the model: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. Freeze, or adapt, what was frozen or adapted then."
        )
    stored.update(_from_model_files(resumption.folder, content["saved_parameters"]))
    with unfit(resumption.folder), checkpoint.named():
        checked_state.check_tensors(content["buffers"], buffers, "/buffers")
    with torch.no_grad():
        for name, parameter in trained.items():
            if parameter.shape != stored[name].shape:
                raise ModelError(
                    f"{resumption.folder}: {name} has the shape {tuple(stored[name].shape)}, and the model's has "
                    f"{tuple(parameter.shape)}."
                )
            parameter.copy_(stored[name])
        for name, saved in _saved_frozen(model, resumption.folder, resumption.frozen):
            parameters[name].copy_(saved)
        for name, value in content["buffers"].items():
            if name in buffers:
                buffers[name].copy_(value)


def _from_model_files(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    places = saved_tensors(folder)
    found = {}
    missing = [name for name in names if name not in places]
    if missing:
        raise RunFolderError(f"{folder} cannot be gone on from: {missing[0]} is in none of its files.")
    for path in {places[name] for name in names}:
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in names if places[name] == path})
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    resumption: Resumption,
    plan: Plan,
    made_with: frozenset[str],
    say: Callable[[str], None],
) -> None:
    """The states of optimizer and schedule; where their options were changed and accepted, around the new options.

    Args:
        optimizer: is new.
        scheduler: is new.
        resumption: what is gone on from.
        plan: that holds from here on; says where states live.
        made_with: the options that optimizer and schedule are made with.
        say: tells the user one thing.
    """
    content = resumption.content
    keeps_optimizer, keeps_schedule = "optim" not in resumption.accepted, resumption.accepted.isdisjoint(made_with)
    with unfit(resumption.folder), checkpoint.named():
        if keeps_optimizer:
            checked_state.check_optimizer(content["optimizer"], optimizer, any_options=not keeps_schedule)
        checked_state.check_schedule(content["schedule"], scheduler if keeps_schedule else None)
    if not keeps_optimizer:
        say("the optimizer is another one than in the checkpoint: it starts anew, without the old one's state.")
    else:
        state = {"state": content["optimizer"]["state"], "param_groups": content["optimizer"]["param_groups"]}
        if not keeps_schedule:
            state["param_groups"] = optimizer.state_dict()["param_groups"]
        if plan.optimizer_states == "host":
            HostStates(optimizer).load(state)
        else:
            optimizer.load_state_dict(state)
        set_implementation(optimizer, plan.optimizer_implementation)
        _restore_dtypes(optimizer, content["optimizer"])
    if keeps_schedule:
        scheduler.load_state_dict(content["schedule"])
        return
    moved = {key: value for key, value in content["schedule"].items() if key in ("last_epoch", "_step_count")}
    scheduler.__dict__.update(moved)
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
        compat.set_last_rates(scheduler, (group["lr"] for group in optimizer.param_groups))


def _restore_dtypes(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """torch widens an optimizer's state to the parameters' dtype when it loads it; put the saved dtypes back."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for parameter, number in zip(parameters, numbers, strict=True):
        for key, value in saved["state"].get(number, {}).items():
            loaded = optimizer.state[parameter].get(key)
            if isinstance(value, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(loaded.device)


def keep_threads(device: torch.device, plan: Plan, say: Callable[[str], None]) -> None:
    """As many threads as before: sums of another number of threads differ in their last bits."""
    if kind_of(device).is_host and torch.get_num_threads() != plan.num_threads:
        say(f"computing with {plan.num_threads} threads as before, in place of {torch.get_num_threads()}.")
        torch.set_num_threads(plan.num_threads)
