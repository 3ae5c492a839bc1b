"""What a process is besides its variables: taken before and after something, and compared.

Run as a program with a folder as its argument, it trains, evaluates and runs a command in this one process, and prints
what each of them has left otherwise than it was, as JSON.
"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LOGGERS = ("", "sartor", "transformers", "datasets", "huggingface_hub", "accelerate", "peft", "torch")


def snapshot() -> dict[str, Any]:
    """Everything that libraries and programs share within a process, but for random generators, which are used."""
    return {
        "variables": dict(os.environ),
        "folder": os.getcwd(),
        "modules": {"hooks": [sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook]},
        "streams": [sys.stdin, sys.stdout, sys.stderr],
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": _wakeup(),
        "warnings": [list(warnings.filters), warnings.showwarning],
        "garbage": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "threads": sorted(thread.name for thread in threading.enumerate() if not thread.daemon),
        "start method": multiprocessing.get_start_method(allow_none=True),
        **_logging(),
        **_torch(),
        **_libraries(),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """What is not as it was, by name."""
    return {
        name: f"{before[name]!r} became {after[name]!r}"[:2000]
        for name in before
        if _differs(before[name], after[name])
    }


def _differs(one: Any, other: Any) -> bool:
    return bool(one != other)


def _wakeup() -> int:
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor)
    return descriptor


def _logging() -> dict[str, Any]:
    found: dict[str, Any] = {"log records": logging.getLogRecordFactory(), "log limit": logging.root.manager.disable}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        found[f"logger {name!r}"] = [logger.level, logger.propagate, logger.disabled, *logger.handlers, *logger.filters]
    return found


def _torch() -> dict[str, Any]:
    import torch
    import torch._dynamo.config
    import torch._inductor.config

    cpu, backends = "cpu", torch.backends
    return {
        "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch's defaults": [torch.get_default_dtype(), torch.get_default_device()],
        "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "autocast": [torch.is_autocast_enabled(cpu), torch.get_autocast_dtype(cpu), torch.is_autocast_cache_enabled()],
        "determinism": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            backends.cudnn.deterministic,
            backends.cudnn.benchmark,
        ],
        "precision of products": [
            torch.get_float32_matmul_precision(),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            backends.mkldnn.enabled,
        ],
        "attention kernels": [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ],
        "compiler": [torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()],
    }


def _libraries() -> dict[str, Any]:
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.utils import logging as transformers_logging

    return {
        "attention functions": dict(AttentionInterface._global_mapping),
        "mask functions": dict(AttentionMaskInterface._global_mapping),
        "progress bars": [
            transformers_logging.is_progress_bar_enabled(),
            datasets.are_progress_bars_disabled(),
            are_progress_bars_disabled(),
        ],
        "caching of datasets": datasets.is_caching_enabled(),
    }


def main(folder: Path) -> None:
    """Print the differences by what was done."""
    import torch
    from transformers import TrainerCallback

    from sartor.cli.main import main as sartor
    from tests.hf import tiny

    class AtStepTwo(TrainerCallback):
        """Lets the second step end in a way of its own."""

        def __init__(self, act: Callable[[], Any]) -> None:
            self.act = act

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.act()

    def fail() -> None:
        raise ZeroDivisionError

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def trainer(name: str, *, act: Callable[[], Any] = lambda: None, **options: Any) -> Any:
        return tiny.trainer(
            folder / name,
            eval_dataset=tiny.texts(3, start=40),
            callbacks=[AtStepTwo(act)],
            max_steps=3,
            sample_prompts=["moon is"],
            sample_max_new_tokens=2,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            rehearse=True,
            **options,
        )

    def resume() -> None:
        again.train(resume_from_checkpoint=str(folder / "trained" / "checkpoint-2"))

    def chat() -> None:
        assert sartor(["chat", str(folder / "model"), "--prompt", "moon is", "--max-new-tokens", "2"]) == 0

    trained = trainer("trained")
    again = trainer("again")
    failed, interrupted, bf16 = trainer("failed", act=fail), trainer("stopped", act=interrupt), trainer("16", bf16=True)
    trained.save_model(str(folder / "model"))
    runs: dict[str, Callable[[], Any]] = {
        "train": trained.train,
        "evaluate": trained.evaluate,
        "train that fails": failed.train,
        "train that is interrupted": interrupted.train,
        "train that is resumed": resume,
        "train in bf16": bf16.train,
        "profile": trainer("profiled").profile,
        "the command env": lambda: sartor(["env"]),
        "the command chat": chat,
    }
    found: dict[str, Any] = {}
    snapshot()  # what libraries set when they are first loaded stays
    for what, act in runs.items():
        torch.set_num_threads(2 if what == "train" else 1)  # whoever resumes it takes as many as it had
        before = snapshot()
        raised = ""
        try:
            act()
        except (ZeroDivisionError, KeyboardInterrupt) as error:
            raised = type(error).__name__
        found[what] = {"raised": raised, "left": differences(before, snapshot())}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
