"""The same callbacks, told the same things in the same order, as trl's trainer: events, steps, flags, log keys,
numbers.

Both libraries train the same tiny model on the same rows, with a callback that writes down everything it is told.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback

from tests.hf import tiny
from tests.hf.recording import FLAGS, Recorder, Steer, shared

trl = pytest.importorskip("trl", reason="trl is not installed; it is the reference here")

# Measured over all scenarios below in float32 at a learning rate of 0.01: 1.2e-6 for losses, 1.5e-6 for norms.  Mean of
# means, a shifted target, another row order or a step left out are off by more than 1e-3.
LOSS_TOLERANCE = 5e-6
NORM_TOLERANCE = 2e-5
COMPARED = {
    "loss": LOSS_TOLERANCE,
    "train_loss": LOSS_TOLERANCE,
    "grad_norm": NORM_TOLERANCE,
    "learning_rate": 1e-12,
    "num_tokens": 0.0,
    "num_input_tokens_seen": 0.0,
    "epoch": 1e-9,
}


def held_out() -> Any:
    return tiny.dataset(tiny.texts(5, start=20))


def several() -> Any:
    return {"one": tiny.dataset(tiny.texts(5, start=20)), "two": tiny.dataset(tiny.texts(3, start=30))}


def force(event: str, flag: str, step: int = 1) -> Callable[[], Steer]:
    """Set a flag of the control in an event of a step."""

    def steer(name: str, state: Any, control: Any) -> None:
        if name == event and state.global_step == step:
            setattr(control, flag, True)

    return lambda: steer


@dataclass
class Scenario:
    """Options of a run that both libraries make."""

    options: dict[str, Any] = field(default_factory=dict)
    rows: Callable[[], Any] = tiny.dataset
    evaluation: Callable[[], Any] | None = None
    steer: Callable[[], Steer] | None = None
    callbacks: Callable[[], list[Any]] = list
    calls: int = 1
    after: Callable[[Any], Any] = lambda trainer: None
    compares_numbers: bool = True


@dataclass
class Run:
    recorder: Recorder
    trainer: Any
    output: Any


def run_with(library: str, scenario: Scenario, folder: Path) -> Run:
    recorder = Recorder(steer=scenario.steer() if scenario.steer else None)
    callbacks = [recorder, *scenario.callbacks()]
    evaluation = scenario.evaluation() if scenario.evaluation else None
    if library == "trl":
        options = vars_of(tiny.config(folder)) | {"gradient_checkpointing": False} | scenario.options
        trainer: Any = trl.SFTTrainer(
            tiny.make_model(),
            trl.SFTConfig(**options),
            train_dataset=scenario.rows(),
            eval_dataset=evaluation,
            processing_class=tiny.make_tokenizer(),
            callbacks=callbacks,
        )
    else:
        trainer = tiny.trainer(
            folder, rows=scenario.rows(), eval_dataset=evaluation, callbacks=callbacks, **scenario.options
        )
    for _ in range(scenario.calls):
        output = trainer.train()
    scenario.after(trainer)
    return Run(recorder, trainer, output)


def vars_of(args: Any) -> dict[str, Any]:
    """The options that `tiny.config` sets."""
    names = [
        "output_dir",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "logging_steps",
        "save_strategy",
        "report_to",
        "disable_tqdm",
        "use_cpu",
        "bf16",
        "max_length",
    ]
    return {name: getattr(args, name) for name in names}


def both(scenario: Scenario, folder: Path) -> tuple[Run, Run]:
    logging.getLogger("sartor").addHandler(logging.NullHandler())
    return run_with("trl", scenario, folder / "trl"), run_with("sartor", scenario, folder / "sartor")


def assert_same_numbers(theirs: Run, ours: Run) -> None:
    for expected, found in zip(theirs.recorder.logs, ours.recorder.logs, strict=True):
        for key, tolerance in COMPARED.items():
            if key in expected:
                assert abs(expected[key] - found[key]) <= tolerance, (key, expected, found)


STEPS = {"eval_strategy": "steps", "eval_steps": 2}
SCENARIOS = {
    "plain": Scenario({"num_train_epochs": 2}),
    "evaluation by steps": Scenario({**STEPS, "num_train_epochs": 2}, evaluation=held_out),
    "evaluation by epochs, steps left unlogged": Scenario(
        {"eval_strategy": "epoch", "num_train_epochs": 2, "logging_steps": 3}, evaluation=held_out
    ),
    "evaluation on start": Scenario(
        {"eval_strategy": "epoch", "eval_on_start": True, "num_train_epochs": 1, "logging_steps": 2},
        evaluation=held_out,
    ),
    "evaluation delayed": Scenario({**STEPS, "eval_delay": 3, "num_train_epochs": 2}, evaluation=held_out),
    "saving by steps": Scenario({"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}),
    "saving by epochs": Scenario({"save_strategy": "epoch", "num_train_epochs": 2}),
    "saving the best": Scenario(
        {**STEPS, "save_strategy": "best", "metric_for_best_model": "loss", "num_train_epochs": 1}, evaluation=held_out
    ),
    "the best loaded at the end": Scenario(
        {
            **STEPS,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
            "learning_rate": 0.5,
            "num_train_epochs": 2,
        },
        evaluation=held_out,
        compares_numbers=False,  # steps this large multiply rounding
    ),
    "early stopping": Scenario(
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "learning_rate": 0.5,
            "num_train_epochs": 4,
        },
        evaluation=held_out,
        callbacks=lambda: [EarlyStoppingCallback(1)],
        compares_numbers=False,
    ),
    "fractional steps": Scenario(
        {
            "logging_steps": 0.25,
            "eval_strategy": "steps",
            "eval_steps": 0.3,
            "save_strategy": "steps",
            "save_steps": 0.4,
            "num_train_epochs": 2,
        },
        evaluation=held_out,
    ),
    "fewer steps than an epoch": Scenario({"max_steps": 3}),
    "more steps than an epoch": Scenario({"max_steps": 8, "logging_steps": 3}),
    "one and a half epochs": Scenario({"num_train_epochs": 1.5}),
    "partial last batch": Scenario({"num_train_epochs": 2}, rows=lambda: tiny.dataset(tiny.texts(9))),
    "partial last batch dropped": Scenario(
        {"num_train_epochs": 2, "dataloader_drop_last": True}, rows=lambda: tiny.dataset(tiny.texts(9))
    ),
    "accumulation that does not divide": Scenario({"gradient_accumulation_steps": 3, "num_train_epochs": 2}),
    "accumulation with a partial batch": Scenario(
        {"gradient_accumulation_steps": 2, "num_train_epochs": 2}, rows=lambda: tiny.dataset(tiny.texts(9))
    ),
    "packing": Scenario(
        {"packing": True, "max_length": 16, "num_train_epochs": 2}, rows=lambda: tiny.dataset(tiny.texts(30))
    ),
    "packing, wrapped": Scenario(
        {"packing": True, "packing_strategy": "wrapped", "max_length": 16, "num_train_epochs": 2},
        rows=lambda: tiny.dataset(tiny.texts(30)),
    ),
    "stream": Scenario({"max_steps": 4}, rows=lambda: tiny.stream(tiny.texts(10))),
    "stream read twice": Scenario({"max_steps": 8}, rows=lambda: tiny.stream(tiny.texts(10))),
    "stream that ends inside an accumulation": Scenario(
        {"max_steps": 4, "gradient_accumulation_steps": 2},
        rows=lambda: tiny.stream(tiny.texts(9)),
        compares_numbers=False,  # trl adds the gradients that are left over to the next step
    ),
    "first step logged": Scenario({"logging_first_step": True, "logging_steps": 4, "num_train_epochs": 2}),
    "nothing logged": Scenario({"logging_strategy": "no", "num_train_epochs": 1}),
    "logging by epochs": Scenario({"logging_strategy": "epoch", "num_train_epochs": 2}),
    "trained twice": Scenario({"num_train_epochs": 1}, calls=2),
    "evaluated afterwards": Scenario(
        {"num_train_epochs": 1}, evaluation=held_out, after=lambda trainer: trainer.evaluate()
    ),
    "rows in order": Scenario({"num_train_epochs": 1, "train_sampling_strategy": "sequential"}),
    "another data seed": Scenario({"num_train_epochs": 2, "data_seed": 7}),
    "shuffled before": Scenario({"num_train_epochs": 2, "shuffle_dataset": True}),
    "tokens counted": Scenario({"num_train_epochs": 1, "include_num_input_tokens_seen": "non_padding"}),
    "no clipping": Scenario({"num_train_epochs": 1, "max_grad_norm": 0}),
    "warmup and cosine": Scenario({"num_train_epochs": 2, "warmup_steps": 0.3, "lr_scheduler_type": "cosine"}),
    "schedule that follows a metric": Scenario(
        {"num_train_epochs": 2, "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        evaluation=held_out,
    ),
    "label smoothing": Scenario({"num_train_epochs": 1, "label_smoothing_factor": 0.2}),
    "dynamic fine-tuning": Scenario({"num_train_epochs": 1, "loss_type": "dft"}),
}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_callbacks_hear_what_they_hear_from_trl(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    theirs, ours = both(scenario, tmp_path)
    assert ours.recorder.told == theirs.recorder.told
    assert ours.recorder.given == theirs.recorder.given
    assert list(ours.output.metrics) == list(theirs.output.metrics)
    assert [shared(entry) for entry in ours.trainer.state.log_history] == [
        list(entry) for entry in theirs.trainer.state.log_history
    ]
    if scenario.compares_numbers:
        assert_same_numbers(theirs, ours)


STEERED = [
    ("on_train_begin", "should_training_stop", 0),
    ("on_epoch_begin", "should_training_stop", 0),
    ("on_epoch_begin", "should_epoch_stop", 0),
    ("on_step_begin", "should_log", 1),
    ("on_step_begin", "should_evaluate", 1),
    ("on_step_begin", "should_save", 1),
    ("on_step_begin", "should_training_stop", 1),
    ("on_step_begin", "should_epoch_stop", 1),
    ("on_substep_end", "should_log", 1),
    ("on_substep_end", "should_evaluate", 1),
    ("on_substep_end", "should_save", 1),
    ("on_pre_optimizer_step", "should_epoch_stop", 1),
    ("on_optimizer_step", "should_evaluate", 1),
    ("on_optimizer_step", "should_training_stop", 1),
    *(("on_step_end", flag, 1) for flag in FLAGS),
    *(("on_epoch_end", flag, 5) for flag in FLAGS),
    ("on_log", "should_save", 2),
    ("on_log", "should_training_stop", 2),
]


@pytest.mark.parametrize(("event", "flag", "step"), STEERED)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_callbacks_steer_as_in_trl(event: str, flag: str, step: int, tmp_path: Path) -> None:
    accumulation = 2 if event == "on_substep_end" else 1
    scenario = Scenario(
        {"num_train_epochs": 2, "logging_steps": 2, "gradient_accumulation_steps": accumulation},
        evaluation=held_out,
        steer=force(event, flag, step),
    )
    theirs, ours = both(scenario, tmp_path)
    assert ours.recorder.told == theirs.recorder.told
    assert_same_numbers(theirs, ours)


@pytest.mark.parametrize("flag", ["should_training_stop", "should_epoch_stop"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_stop_in_a_substep_gives_the_same_events_and_no_step(flag: str, tmp_path: Path) -> None:
    """Numbers differ by design: trl has run some of the batch's parts, and leaves their gradients for the next step."""
    scenario = Scenario(
        {"num_train_epochs": 2, "gradient_accumulation_steps": 2}, steer=force("on_substep_end", flag, step=1)
    )
    theirs, ours = both(scenario, tmp_path)
    heard = [[(told.event, told.step, told.epoch, told.flags) for told in run.recorder.told] for run in (theirs, ours)]
    assert heard[1] == heard[0]
    assert ours.trainer.state.global_step == theirs.trainer.state.global_step


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_each_of_several_evaluation_sets_has_keys_of_its_own(tmp_path: Path) -> None:
    """trl gives the loss of each, and calls everybody's entropy and accuracy `eval_entropy`: the last one wins."""
    scenario = Scenario(
        {"eval_strategy": "steps", "eval_steps": 3, "num_train_epochs": 2}, evaluation=several, compares_numbers=False
    )
    theirs, ours = both(scenario, tmp_path)

    def plain(run: Run) -> list[Any]:
        keys = [
            tuple(key.replace("eval_one_", "eval_").replace("eval_two_", "eval_") for key in told.keys)
            for told in run.recorder.told
        ]
        return [(told.event, told.step, told.flags, key) for told, key in zip(run.recorder.told, keys, strict=True)]

    assert plain(ours) == plain(theirs)
    found = ours.trainer.evaluate()
    for name in ("one", "two"):
        assert {f"eval_{name}_loss", f"eval_{name}_entropy", f"eval_{name}_mean_token_accuracy"} <= set(found)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_predict_tells_the_same_events(tmp_path: Path) -> None:
    scenario = Scenario({"num_train_epochs": 1}, after=lambda trainer: trainer.predict(trainer.train_dataset))
    theirs, ours = both(scenario, tmp_path)
    assert [(told.event, told.flags) for told in ours.recorder.told] == [
        (told.event, told.flags) for told in theirs.recorder.told
    ]
    assert set(theirs.recorder.told[-1].keys) <= set(ours.recorder.told[-1].keys)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_empty_stream_stops_as_in_trl(tmp_path: Path) -> None:
    def none_after_preparation() -> Any:
        rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
        return tiny.dataset(rows).to_iterable_dataset().skip(1)

    options = {"max_steps": 3, "dataset_kwargs": {"skip_prepare_dataset": True}}
    ours = run_with("sartor", Scenario(options, rows=none_after_preparation), tmp_path)
    assert ours.output.global_step == 0
    assert [told.event for told in ours.recorder.told] == [
        "on_init_end",
        "on_train_begin",
        "on_epoch_begin",
        "on_epoch_end",
        "on_log",
        "on_train_end",
    ]


def test_events_are_given_everything_they_may_want(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = tiny.trainer(
        tmp_path, callbacks=[recorder], eval_dataset=held_out(), eval_strategy="epoch", num_train_epochs=2
    )
    trainer.train()
    always = {"model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader"}
    for event, given in recorder.given.items():
        assert always <= set(given), event
    # `given` holds the last time that an event was heard: by then there was an evaluation
    assert all(recorder.given["on_step_end"][name] for name in always)
    assert all(recorder.given["on_evaluate"][name] for name in (*always, "metrics"))
    assert recorder.given["on_log"]["logs"]


def test_dataloaders_that_callbacks_get_can_be_read(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Reader(Recorder):
        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            for name in ("train_dataloader", "eval_dataloader"):
                loader = given[name]
                seen[name] = (len(loader), len(loader.dataset), next(iter(loader))["input_ids"].shape[0])

    trainer = tiny.trainer(
        tmp_path, callbacks=[Reader()], eval_dataset=held_out(), eval_strategy="epoch", num_train_epochs=1
    )
    trainer.train()
    assert seen == {"train_dataloader": (5, 10, 2), "eval_dataloader": (3, 5, 2)}


def test_a_callback_that_changes_the_learning_rate_is_obeyed(tmp_path: Path) -> None:
    class Freeze(Recorder):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **given: Any) -> None:
            if state.global_step == 2:
                for group in optimizer.param_groups:
                    group["lr"] = 0.0

    class Watch(Recorder):
        before: Any = None
        after: Any = None

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            if state.global_step == 2:
                self.before = tiny.weights(model)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            if state.global_step == 2:
                self.after = tiny.weights(model)

    watch = Watch()
    tiny.trainer(tmp_path, callbacks=[Freeze(), watch], max_steps=3).train()
    assert all((watch.before[name] == watch.after[name]).all() for name in watch.before)
