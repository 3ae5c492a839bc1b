"""Runs the same commands and scripts on two commits, and says what differs: nothing may, where code was only moved.

    python -m tests.golden --base HEAD~1              # or: make golden BASE=HEAD~1
    python -m tests.golden --base HEAD~1 lora push    # these alone
    python -m tests.golden --record FOLDER            # of this tree alone, as JSON

Compared are losses and all other logged values that are no times, digests of weights, names of files, keys of JSON,
exit codes, and whether messages name what they must name.  Each scenario is a process forked from one that has imported
the heavy libraries, and imports `sartor` from the tree that it looks at: it uses what is public, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 900
TIMING = ("runtime", "per_second", "model_flops_utilization", "peak_memory_bytes", "total_flos")
"""Ends of logged keys whose values are times or memory, which no two runs share."""
KEYS_OF = ("plan.json", "data.json", "sft_config.json", "trainer_state.json", "config.json", "tokenizer_config.json")
HEAVY = ("torch", "transformers.trainer", "transformers.models.llama", "datasets", "peft", "huggingface_hub")

Result = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a scenario runs."""

    folder: Path
    """Its own, empty."""
    model: Path
    """A tiny base model without a chat template."""


# --- what is looked at ------------------------------------------------------------------------------------------------


def seen(run: Path) -> Result:
    """Everything that a run folder shows and that two equal runs share."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    found: Result = {"files": [path.relative_to(run).as_posix() for path in files]}
    for path in files:
        name = path.relative_to(run).as_posix()
        if path.suffix == ".safetensors" and "run_state" not in name:
            found[name] = digest(path)
        elif path.name in KEYS_OF:
            found[name] = sorted(json.loads(path.read_text(encoding="utf-8")))
        elif path.name in ("metrics.jsonl", "samples.jsonl"):
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = [without_times(line) for line in lines]
    return found


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A logged line; of times only the keys stay."""
    return {key: "a time" if key.endswith(TIMING) else value for key, value in line.items()}


def digest(path: Path) -> str:
    """Of a file's tensors, whatever their order in it."""
    from safetensors.torch import load_file

    checksum = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(load_file(path).items()):
        checksum.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.double().numpy().tobytes())
    return checksum.hexdigest()


def command(*argv: str | Path, names: Sequence[str] = (), stdin: str = "") -> Result:
    """Run `sartor ...` in a process of its own: its exit code, and which of `names` its messages name."""
    output, text, source = Path("output.txt"), Path("stdin.txt"), None
    text.write_text(stdin, encoding="utf-8")
    process = os.fork()
    if process == 0:
        become(argv, text, output)
    source = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    said = output.read_text(encoding="utf-8", errors="replace")
    if source == 1 and "Traceback" in said:
        raise RuntimeError(said[-3000:])
    return {"exit code": source, "named": {name: name in said for name in names}}


def become(argv: Sequence[str | Path], stdin: Path, output: Path) -> None:
    """Become a command; does not return."""
    code = 1
    try:
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        for descriptor in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        from sartor.cli.main import main

        code = main([str(word) for word in argv])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# --- rows and models --------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUICK = (
    "--report_to", "none", "--use_cpu", "--logging_steps", "1", "--learning_rate", "1e-2", "--eos_token", "<|im_end|>",
    "--per_device_train_batch_size", "2",
)  # fmt: skip


def questions(count: int = 9) -> list[dict[str, str]]:
    """Rows of a question and an answer, no two alike."""
    return [
        {"ask": f"What is {'very ' * (n % 4)}{n}?", "say": "more " * (n % 5) + f"than {n - 1}"} for n in range(count)
    ]


def chats(count: int = 9) -> list[dict[str, Any]]:
    """The same as conversations; some have two answers."""
    rows = []
    for number, row in enumerate(questions(count)):
        messages = [{"role": "user", "content": row["ask"]}, {"role": "assistant", "content": row["say"]}]
        rows.append({"messages": messages * (1 + number % 2)})
    return rows


def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as a file."""
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train(place: Place, rows: Sequence[dict[str, Any]], *more: str | Path, names: Sequence[str] = ()) -> Result:
    """`sartor train` on rows, and what the run folder shows."""
    done = command(
        "train", "--model", place.model, "--data", write("rows.jsonl", rows), *QUICK, "--output_dir", "out", *more,
        names=names,
    )  # fmt: skip
    return {**done, **seen(Path("out"))}


def script(place: Place, rows: Any, options: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """A trainer, as a script makes one."""
    from sartor import SFTConfig, SFTTrainer

    defaults: dict[str, Any] = {
        "output_dir": "out", "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False,
        "max_steps": 4, "eos_token": "<|im_end|>",
    }  # fmt: skip
    arguments.setdefault("model", str(place.model))
    return SFTTrainer(args=SFTConfig(**{**defaults, **(options or {})}), train_dataset=rows, **arguments)


def trained(trainer: Any, resume: Any = None) -> Result:
    """Train, and look at the log, the weights and the folder."""
    trainer.train(resume_from_checkpoint=resume)
    checksum = hashlib.blake2b(digest_size=8)
    for name, parameter in trainer.model.named_parameters():
        checksum.update(name.encode() + parameter.detach().double().numpy().tobytes())
    log = [without_times(line) for line in trainer.state.log_history]
    return {"weights": checksum.hexdigest(), "log": log, **seen(Path("out"))}


def dataset(rows: list[dict[str, Any]]) -> Any:
    """As a data set of the `datasets` library."""
    from datasets import Dataset

    return Dataset.from_list(rows)


# --- the scenarios ----------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Callable[[Place], Result]] = {}


def scenario(function: Callable[[Place], Result]) -> Callable[[Place], Result]:
    """Add one to the table."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
def demo(place: Place) -> Result:
    """The embedded default, from its base to its score."""
    done = command("demo", "--output-dir", "out", "--no-chat", names=("before", "after", "sartor chat"))
    return {**done, **seen(Path("out"))}


@scenario
def messages(place: Place) -> Result:
    return train(place, chats(), "--max_steps", "6", "--save_strategy", "no", names=("sartor chat out",))


@scenario
def answers(place: Place) -> Result:
    """Only answers are trained, proven without marks; then a question is asked."""
    done = train(place, chats(), "--assistant_only_loss", "--num_train_epochs", "2")
    asked = command("chat", "out", "--prompt", "What is 3?", "--greedy", "--device", "cpu", "--max_new_tokens", "8")
    return {**done, "chat": asked, "answer": hashlib.sha256(Path("output.txt").read_bytes()).hexdigest()}


@scenario
def completions(place: Place) -> Result:
    rows = [{"prompt": row["ask"], "completion": " " + row["say"]} for row in questions()]
    return train(place, rows, "--max_steps", "4", "--gradient_accumulation_steps", "2")


@scenario
def texts(place: Place) -> Result:
    rows = [{"text": f"{row['ask']} {row['say']}"} for row in questions()]
    return train(place, rows, "--max_steps", "4", "--label_smoothing_factor", "0.1", "--max_length", "24")


@scenario
def mapped(place: Place) -> Result:
    return train(place, questions(), "--map", "user={ask}", "--map", "assistant={say}", "--max_steps", "4")


@scenario
def tokens(place: Place) -> Result:
    rows = [{"input_ids": [5 + (n * k) % 200 for k in range(3 + n)], "weight": 1.0 + n % 2} for n in range(8)]
    return trained(script(place, dataset(rows)))


@scenario
def tools(place: Place) -> Result:
    rows = []
    for row in questions(6):
        call = {"type": "function", "function": {"name": "find", "arguments": {"what": row["ask"]}}}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": row["ask"]},
                    {"role": "assistant", "content": "I look.", "tool_calls": [call]},
                    {"role": "tool", "content": "found"},
                    {"role": "assistant", "content": row["say"]},
                ],
                "tools": [{"type": "function", "function": {"name": "find", "description": "d", "parameters": {}}}],
            }
        )
    template = Path("template.jinja")
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        encoding="utf-8",
    )
    more = ("--assistant_only_loss", "--max_steps", "4", "--chat_template_path", template)
    return train(place, rows, *more)


@scenario
def lora(place: Place) -> Result:
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    options = {"save_strategy": "steps", "save_steps": 2}
    return trained(script(place, dataset(chats()), options, peft_config=adapter))


@scenario
def resumed(place: Place) -> Result:
    """Four steps, then four more with the same command."""
    steps = ("--save_strategy", "steps", "--save_steps", "2", "--gradient_accumulation_steps", "2")
    first = train(place, chats(), *steps, "--max_steps", "4")
    return {"first": first, **train(place, chats(), *steps, "--max_steps", "8", "--resume", names=("going on from",))}


@scenario
def killed(place: Place) -> Result:
    """A process that is killed when its first checkpoint is there, and then gone on with."""
    data = write("rows.jsonl", chats())
    argv = (
        "train", "--model", place.model, "--data", data, *QUICK, "--output_dir", "out", "--max_steps", "30",
        "--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "2",
    )  # fmt: skip
    process = os.fork()
    if process == 0:
        become(argv, Path(os.devnull), Path("killed.txt"))
    deadline = time.monotonic() + TIMEOUT_S / 2
    while not Path("out/checkpoint-5").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return {**command(*argv, "--resume", names=("going on from",)), **seen(Path("out"))}


@scenario
def best(place: Place) -> Result:
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 8,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 2, "learning_rate": 0.3,
    }  # fmt: skip
    return trained(script(place, dataset(chats()), options, eval_dataset=dataset(chats(4))))


@scenario
def evaluation(place: Place) -> Result:
    """Two sets, sample answers, metrics of the user's own, and prediction."""
    options = {"eval_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1, "eval_on_start": True}
    options |= {"sample_prompts": ["What is 3?"], "sample_steps": 4, "sample_max_new_tokens": 6}
    sets = {"near": dataset(chats(4)), "far": dataset(chats(12)).select(range(9, 12))}

    def measure(prediction: Any) -> dict[str, float]:
        return {"shape": float(prediction.predictions.shape[-1])}

    trainer = script(place, dataset(chats()), options, eval_dataset=sets, compute_metrics=measure)
    done = trained(trainer)
    predicted = trainer.predict(dataset(chats(3)))
    return {**done, "predicted": without_times(predicted.metrics), "shape": list(predicted.predictions.shape)}


@scenario
def packed(place: Place) -> Result:
    options = {"packing": True, "max_length": 48, "optim": "adafactor", "neftune_noise_alpha": 5.0}
    return trained(script(place, dataset(chats(20)), options))


@scenario
def stream(place: Place) -> Result:
    rows = dataset(chats()).to_iterable_dataset().shuffle(seed=3, buffer_size=4)
    return trained(script(place, rows, {"max_steps": 7, "save_strategy": "steps", "save_steps": 3}))


@scenario
def own_loss(place: Place) -> Result:
    """Padded batches, as transformers makes them."""

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        import torch

        logits = outputs.logits[:, :-1].flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch

    return trained(script(place, dataset(chats()), {"gradient_accumulation_steps": 2}, compute_loss_func=loss))


@scenario
def dft(place: Place) -> Result:
    options = {"loss_type": "dft", "gradient_checkpointing": True, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine"}
    return trained(script(place, dataset(chats()), options))


@scenario
def bfloat16(place: Place) -> Result:
    """Weights that arrive in bfloat16 and are trained without float32 masters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.bfloat16)
    options = {
        "stochastic_rounding": True,
        "bf16": True,
        "strict_precision": True,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    return trained(script(place, dataset(chats()), options, model=model, processing_class=tokenizer))


@scenario
def events(place: Place) -> Result:
    """The order in which callbacks are called."""
    from transformers import TrainerCallback

    order: list[str] = []
    names = [name for name in dir(TrainerCallback) if name.startswith("on_")]

    def heard(name: str) -> Callable[..., None]:
        return lambda self, *_, **keywords: order.append(f"{name} {sorted(keywords)}")

    callback = type("Heard", (TrainerCallback,), {name: heard(name) for name in names})()
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "epoch", "gradient_accumulation_steps": 2}
    trainer = script(place, dataset(chats()), options, eval_dataset=dataset(chats(3)), callbacks=[callback])
    return {**trained(trainer), "order": order}


@scenario
def inspected(place: Place) -> Result:
    rows = [*chats(), {"messages": []}, *chats(2)]
    argv = ("inspect", write("rows.jsonl", rows), "--model", place.model, "--chat_template_path", template())
    done = command(*argv, "--assistant_only_loss", "--json", names=("rows.jsonl",))
    content = json.loads(Path("output.txt").read_text(encoding="utf-8").partition("{")[2].join(("{", "")))
    return {**done, "content": content, "page": command(*argv, "--html", "page.html")}


def template() -> Path:
    """ChatML, without marks of what the assistant says."""
    path = Path("chatml.jinja")
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


@scenario
def planned(place: Place) -> Result:
    data = write("rows.jsonl", chats())
    done = command("plan", "--model", place.model, "--data", data, "--gpu", "T4", "--bf16", "false", names=("T4", "GB"))
    figures = [word for word in Path("output.txt").read_text(encoding="utf-8").split() if word[0].isdigit()]
    return {**done, "figures": figures}


@scenario
def push(place: Place) -> Result:
    """To a Hub on this machine: what it received."""
    from tests.hub_server import TOKEN, HubServer

    with HubServer() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        argv = (
            "train", "--model", place.model, "--data", write("rows.jsonl", chats()), *QUICK, "--output_dir", "out",
            "--max_steps", "2", "--push_to_hub", "--hub_model_id", "alice/golden",
        )  # fmt: skip
        script = "import sys; from sartor.cli.main import main; sys.exit(main())"  # where to push is read at import
        path = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", script, *argv],
            env={**os.environ, **online, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        received = sorted(hub.files("alice/golden"))
    return {"exit code": done.returncode, "received": received, **seen(Path("out"))}


def refused(place: Place, names: Sequence[str], *more: str | Path, rows: Any = None) -> Result:
    """A command that must end with an error which names things, and leaves no run."""
    data = write("rows.jsonl", chats() if rows is None else rows)
    argv = ("train", "--model", place.model, "--data", data, *QUICK, "--output_dir", "out", "--max_steps", "2", *more)
    return {**command(*argv, names=names), "files": sorted(path.name for path in Path().glob("out/*"))}


@scenario
def no_such_option(place: Place) -> Result:
    return refused(place, ("--max_stepss", "--max_steps"), "--max_stepss", "3")


@scenario
def no_such_file(place: Place) -> Result:
    return refused(place, ("nowhere.jsonl",), "--data", "nowhere.jsonl")


@scenario
def bad_row(place: Place) -> Result:
    row = {"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "yes"}]}
    return refused(place, ("rows.jsonl", "10"), rows=[*chats(), row])


@scenario
def nothing_to_resume(place: Place) -> Result:
    return refused(place, ("no checkpoint", "out"), "--resume")


@scenario
def refused_option(place: Place) -> Result:
    return refused(place, ("deepspeed",), "--deepspeed", "zero.json")


# --- two trees --------------------------------------------------------------------------------------------------------


def record(tree: Path, names: Sequence[str], folder: Path, model: Path) -> dict[str, Result]:
    """Run scenarios on a tree, each in a fork of this process; what each shows, by its name."""
    results = {}
    for name in names:
        place = folder / name
        place.mkdir(parents=True)
        process = os.fork()
        if process == 0:
            run_one(tree, name, Place(place, model))
        signal.signal(signal.SIGALRM, lambda *_, process=process: os.killpg(process, signal.SIGKILL))
        signal.alarm(TIMEOUT_S)
        os.waitpid(process, 0)
        signal.alarm(0)
        file = place / "result.json"
        results[name] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"problem": "no result"}
        shutil.rmtree(place)
    return results


def run_one(tree: Path, name: str, place: Place) -> None:
    """One scenario, in a process of its own; does not return."""
    try:
        os.setpgid(0, 0)
        os.chdir(place.folder)
        silent = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(silent, descriptor)
        sys.path.insert(0, str(tree / "src"))
        os.environ.update(SARTOR_CACHE=str(place.folder / "cache"), HF_DATASETS_CACHE=str(place.folder / "cache"))
        import sartor

        assert Path(sartor.__file__).is_relative_to(tree), sartor.__file__
        result = SCENARIOS[name](place)
    except BaseException:
        result = {"problem": traceback.format_exc()}
    (place.folder / "result.json").write_text(json.dumps(result, sort_keys=True), encoding="utf-8")
    os._exit(0)


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two results differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}/{number}")
    elif one != other:
        yield f"{where}: {json.dumps(one)[:300]} -> {json.dumps(other)[:300]}"


@contextlib.contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The files of a commit, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="sartor-golden-") as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and print a line for each scenario; exit code 0 only where nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="scenarios (default: all)")
    parser.add_argument("--base", default="HEAD", help="the commit to compare this tree with")
    parser.add_argument("--record", type=Path, help="write what this tree shows into this folder, compare nothing")
    arguments = parser.parse_args(argv)
    names = arguments.names or list(SCENARIOS)
    if unknown := set(names) - SCENARIOS.keys():
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    import_heavy()
    with tempfile.TemporaryDirectory(prefix="sartor-golden-") as folder, tree_of(arguments.base) as base:
        model = Path(folder) / "model"
        make_model(model)
        here = None
        if arguments.record:
            arguments.record.mkdir(parents=True, exist_ok=True)
            (arguments.record / "golden.json").write_text(
                json.dumps(record(ROOT, names, Path(folder) / "runs", model), indent=1), encoding="utf-8"
            )
            return 0
        num_different = 0
        for name in names:
            there, here = (record(tree, [name], Path(folder) / "runs", model)[name] for tree in (base, ROOT))
            found = [f"the scenario failed: {here['problem']}"] if "problem" in here else list(differences(there, here))
            print(f"{name:20} {'DIFFERENT' if found else 'equal'}", *found[:12], sep="\n    ", flush=True)
            num_different += bool(found)
    print(f"{len(names) - num_different} of {len(names)} equal")
    return 1 if num_different else 0


def import_heavy() -> None:
    """What every scenario needs, once; no thread may be running when this process forks."""
    import importlib

    os.environ.update(
        HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1",
        COLUMNS="120",
    )  # fmt: skip
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def make_model(folder: Path) -> None:
    """A random model that knows single bytes and the markers of ChatML, without a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: n for n, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], additional_special_tokens=special[1:]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=512, initializer_range=0.1, **size)
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
