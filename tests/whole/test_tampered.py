"""A checkpoint that somebody else made, with right checksums: whatever is in it, it is used, or refused by name.

One checkpoint is written.  For each case a copy is changed and sealed anew, and a run is asked to go on from it.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from sartor import SFTTrainer
from sartor.errors import RunFolderError, SartorError
from sartor.run import checkpoint
from tests.hf import tiny
from tests.whole.test_resume import records

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(os.name == "nt", reason="links and pipes are POSIX'"),
]

OPTIONS = {
    "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "max_steps": 4, "eval_strategy": "steps",
    "eval_steps": 2, "metric_for_best_model": "loss",
}  # fmt: skip
Tree = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def make(folder: Path) -> SFTTrainer:
    return tiny.trainer(folder, callbacks=[EarlyStoppingCallback(9)], eval_dataset=tiny.texts(2), **OPTIONS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    make(folder).train()
    return folder


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> SFTTrainer:
    return make(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be changed, beside the metrics of its run."""
    (tmp_path / "theirs").mkdir()
    shutil.copy(whole / "metrics.jsonl", tmp_path / "theirs")
    return shutil.copytree(whole / "checkpoint-2", tmp_path / "theirs" / "checkpoint-2")


def resume(trainer: SFTTrainer, folder: Path) -> None:
    """With what an earlier case left in the run folder taken away."""
    for path in Path(trainer.args.output_dir).glob("*.jsonl"):
        path.unlink()
    trainer.train(resume_from_checkpoint=str(folder))


def change_tree(folder: Path, change: Callable[[Tree], None], name: str = "run_state/state.json") -> None:
    tree = json.loads((folder / name).read_text(encoding="utf-8"))
    change(tree)
    (folder / name).write_text(json.dumps(tree), encoding="utf-8")
    checkpoint.seal(folder)


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    path = folder / "run_state" / "state.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)
    checkpoint.seal(folder)


def test_what_was_not_changed_is_gone_on_from(trainer: SFTTrainer, copied: Path, whole: Path) -> None:
    """Also after it was sealed anew."""
    checkpoint.seal(copied)
    resume(trainer, copied)
    assert trainer.state.global_step == 4
    assert records(Path(trainer.args.output_dir)) == records(whole)


def put(place: str, value: Any) -> Callable[[Tree], None]:
    """Set, or with `...` take away, what a tree has at a place."""
    *path, last = place.split("/")

    def change(tree: Any) -> None:
        for key in path:
            tree = tree[int(key)] if isinstance(tree, list) else tree[key]
        if value is ...:
            del tree[last]
        else:
            tree[int(last) if isinstance(tree, list) else last] = value

    return change


VALUES: dict[str, list[Any]] = {
    "plan/num_threads": [10**9, 0, -1, "2", True, 10**400],
    "plan/micro_batch_tokens": [0, "x", -5, None],
    "plan/loss_chunk_rows": [0],
    "plan/compute_dtype": ["__version__", 3],
    "plan/attention": ["somebody/kernels", 3],
    "plan/layout": [7, "diagonal"],
    "plan/extra": [1],
    "plan": [[], ...],
    "cursor/epoch": [-1, "x"],
    "cursor/optimizer_batches": [-1, 1.5],
    "steps/done": [-1, True, 10**400],
    "updater/scaler": [{"scale": "x"}],
    "control/should_training_stop": [1],
    "train_loop/spikes": [{"losses": ["x"], "count": 0}, {"losses": [], "count": 0, "more": 1}],
    "train_loop/window/sums/num_targets": [...],
    "metrics_bytes": [-1, "x"],
    "settings": [[], {"max_steps": "all"}],
    "saved_parameters": [3, [3]],
    "fingerprints": [...],
    "frozen": [3],
    "parameters": [{"model.norm.weight": {"$": "tensor", "name": "/generators/torch"}}],
    "generators/torch": [5, ...],
    "generators/cuda": [[{"$": "tensor", "name": "/generators/torch"}]],
    "generators/python/items/0": [2],
    "generators/python/items/1/items/624": [625, -1],
    "generators/python/items/1/items/3": [1 << 40, "x"],
    "generators/python/items/2": ["x"],
    "generators/numpy/state/pos": [625, -1, 10**9],
    "generators/numpy/state/key/dtype": ["|O", "<f4", "x"],
    "generators/numpy/state/key/name": ["/generators/torch", "nowhere", []],
    "generators/numpy/bit_generator": ["PCG64"],
    "optimizer/param_groups": [[], {}, [1]],
    "optimizer/param_groups/0/lr": ["x", {"$": "float", "value": "nan"}, ...],
    "optimizer/param_groups/0/betas": [[0.9, 0.9], {"$": "tuple", "items": [0.9]}],
    "optimizer/param_groups/0/params": [[0], [0, 1, "x"]],
    "optimizer/param_groups/0/more": [1],
    "optimizer/state": [[], {"$": "dict", "items": [[99, {}]]}, {"$": "dict", "items": [[[], {}]]}],
    "schedule/last_epoch": [-3, "x", ...],
    "schedule/base_lrs": [[0.1, 0.2, 0.3], "x", ["x", 0.1]],
    "schedule/step": [1],
    "schedule/optimizer": [1],
    "buffers": [3],
    "metrics_writer": [{"$": "lambda"}, {"$": "dtype", "value": "ops"}],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, some in VALUES.items() for value in some])
def test_a_value_that_no_run_writes_is_refused_by_its_place(
    place: str, value: Any, trainer: SFTTrainer, copied: Path
) -> None:
    change_tree(copied, put(place, value))
    checkpoint.verify(copied)
    with pytest.raises(RunFolderError, match=r"checkpoint-2 cannot be gone on from: .*") as caught:
        resume(trainer, copied)
    assert "run_state/state.json" in str(caught.value)
    assert place.split("/")[0] in str(caught.value) or "cannot be read" in str(caught.value)


@pytest.mark.parametrize("names", [["nowhere"], []])
def test_parameters_that_are_nowhere_are_named(names: list[str], trainer: SFTTrainer, copied: Path) -> None:
    def changed(tree: Tree) -> None:
        tree["saved_parameters"] = names and [*tree["saved_parameters"][1:], *names]

    change_tree(copied, changed)
    with pytest.raises(SartorError, match=r"other trained parameters than the model: .*(nowhere|embed_tokens)"):
        resume(trainer, copied)


def test_weights_that_are_in_no_file_are_named(trainer: SFTTrainer, copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    checkpoint.seal(copied)
    with pytest.raises(RunFolderError, match=r"model\.norm\.weight is in none of its files"):
        resume(trainer, copied)


HISTORY: dict[str, list[Any]] = {
    "global_step": [-1, True, 10**12, "x", ...],
    "epoch": ["x"],
    "log_history": [3, [3], None],
    "best_global_step": ["x"],
    "best_model_checkpoint": [3],
    "surprise": [1],
    "stateful_callbacks": [3, {"EarlyStoppingCallback": 3}],
    "stateful_callbacks/EarlyStoppingCallback": [{"attributes": {"on_step_end": 3}}],
    "stateful_callbacks/EarlyStoppingCallback/attributes/early_stopping_patience_counter": ["x"],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, some in HISTORY.items() for value in some])
def test_so_is_one_of_transformers_file(place: str, value: Any, trainer: SFTTrainer, copied: Path) -> None:
    change_tree(copied, put(place, value), "trainer_state.json")
    with pytest.raises(RunFolderError, match=rf"trainer_state\.json: .*{place.split('/')[0]}"):
        resume(trainer, copied)


MOMENT = "/optimizer/state/0/exp_avg"
COUNT = "/optimizer/state/0/step"


def swap(name: str, value: torch.Tensor | None) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return change


def half_seeded() -> torch.Tensor:
    """A state of torch's generator that says there are more words to come than there are."""
    state = torch.get_rng_state()
    state[8:12] = torch.tensor([600], dtype=torch.int32).view(torch.uint8)
    state[16:24] = torch.tensor([624], dtype=torch.int64).view(torch.uint8)
    return state


TENSORS: dict[str, tuple[str, torch.Tensor | None]] = {
    "another shape": (MOMENT, torch.zeros(3)),
    "fewer values": (MOMENT, torch.zeros(1, 16)),
    "whole numbers": (MOMENT, torch.zeros(87, 16, dtype=torch.int64)),
    "missing": (MOMENT, None),
    "a count of three": (COUNT, torch.zeros(3, dtype=torch.float64)),
    "a count that is none": (COUNT, torch.tensor(torch.nan)),
    "a negative count": (COUNT, torch.tensor(-1.0)),
    "a short generator": ("/generators/torch", torch.zeros(16, dtype=torch.uint8)),
    "a generator of floats": ("/generators/torch", torch.zeros(5056)),
    "an empty generator": ("/generators/torch", torch.zeros(5056, dtype=torch.uint8)),
    "a generator beyond its words": ("/generators/torch", half_seeded()),
    "numpy's words": ("/generators/numpy/state/key", torch.zeros(5, dtype=torch.int32)),
    "a sum": ("/train_loop/window/sums/loss_sum", torch.zeros(4)),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_no_run_writes_is_refused_by_its_place(case: str, trainer: SFTTrainer, copied: Path) -> None:
    name, value = TENSORS[case]
    change_tensors(copied, swap(name, value))
    with pytest.raises(RunFolderError) as caught:
        resume(trainer, copied)
    assert name.removesuffix("/key") in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "more", "another"])
def test_the_states_of_a_parameter_are_those_that_its_optimizer_has(
    change: str, trainer: SFTTrainer, copied: Path
) -> None:
    def changed(tree: Tree) -> None:
        entry = tree["optimizer"]["state"]["items"][0][1]
        moment = entry.pop("exp_avg")
        entry.update({"missing": {}, "more": {"exp_avg": moment, "more": 1}, "another": {"exp_avg": 3}}[change])

    change_tree(copied, changed)
    with pytest.raises(RunFolderError, match=r"/optimizer/state/0/(exp_avg|more)"):
        resume(trainer, copied)


# --- files ---------------------------------------------------------------------------------------------------------


def bomb(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / name).write_text(text, encoding="utf-8"), None)[1]


def huge(name: str) -> Callable[[Path], None]:
    """Of a file that takes no room on the disk."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(1 << 30)

    return make


def pipe(name: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name), None)[2]


def listen(folder: Path) -> None:
    place = os.getcwd()
    os.chdir(folder)
    try:
        socket.socket(socket.AF_UNIX).bind("socket")
    finally:
        os.chdir(place)


def link(name: str) -> Callable[[Path], None]:
    """In place of a file or folder, a link to it: the bytes are right."""

    def make(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return make


def listing(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        del manifest["blake2b"]
        manifest["files"][name] = {"bytes": 0, "xxh3_64": []}
        text = json.dumps({**manifest, "blake2b": checkpoint._digest_of(manifest)})
        (folder / "manifest.json").write_text(text, encoding="utf-8")

    return make


def unlisted(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    content = {**manifest, "files": {}}
    del content["blake2b"]
    text = json.dumps({**content, "blake2b": checkpoint._digest_of(content)})
    (folder / "manifest.json").write_text(text, encoding="utf-8")


STATE = "run_state/state.json"
FILES: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "a huge manifest": (huge("manifest.json"), False, r"manifest\.json has 1,073,741,824 bytes"),
    "a manifest that is a list": (bomb("manifest.json", "[]"), False, "manifest.json"),
    "a nested manifest": (bomb("manifest.json", "[" * 100_000), False, "manifest.json"),
    "a pipe for a manifest": (pipe("manifest.json"), False, "manifest.json"),
    "a linked manifest": (link("manifest.json"), False, "manifest.json is a link"),
    "a pipe": (pipe("more"), False, "more is neither"),
    "a socket": (listen, False, "socket is neither"),
    "a linked file": (link("model.safetensors"), False, "model.safetensors is a link"),
    "a linked folder": (link("run_state"), False, "run_state is a link"),
    "a file of the system": (listing("/dev/zero"), False, "/dev/zero"),
    "a file outside": (listing("../metrics.jsonl"), False, "metrics.jsonl"),
    "a name with an end in it": (listing("a\0b"), False, "which is no file of this checkpoint"),
    "no name": (listing(""), False, "which is no file of this checkpoint"),
    "half a character": (listing("\ud800"), False, "which is no file of this checkpoint"),
    "nothing listed": (unlisted, False, "not among the files"),
    "a huge state": (huge(STATE), True, r"state\.json has 1,073,741,824 bytes"),
    "a state that is a list": (bomb(STATE, "[]"), True, "no JSON object"),
    "a nested state": (bomb(STATE, '{"plan":' * 100_000), True, "state.json cannot be read"),
    "a nested state that ends": (bomb(STATE, '{"a":' + "[" * 900 + "]" * 900 + "}"), True, "state.json"),
    "a state of many digits": (bomb(STATE, '{"a":' + "9" * 5_000 + "}"), True, "state.json"),
    "tensors that are none": (bomb("run_state/state.safetensors", "x" * 100), True, "state.safetensors"),
    "a nested history": (bomb("trainer_state.json", "[" * 100_000), True, "trainer_state.json"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_folder_that_no_run_writes_is_refused_by_its_file(case: str, trainer: SFTTrainer, copied: Path) -> None:
    """And nothing in it, or beside it, is changed."""
    change, seals, told = FILES[case]
    change(copied)
    if seals:
        checkpoint.seal(copied)
    with pytest.raises(SartorError, match=told):
        resume(trainer, copied)


def test_a_checkpoint_that_is_reached_by_a_link_is_gone_on_from(trainer: SFTTrainer, copied: Path) -> None:
    """One that the user made: what it leads to may lie on another disk."""
    moved = copied.rename(copied.parent.parent / "moved")
    copied.symlink_to(moved)
    resume(trainer, copied)
    assert trainer.state.global_step == 4
    assert (moved / "manifest.json").exists()


class Plants(TrainerCallback):
    """Puts a link where the first checkpoint is to be written."""

    def __init__(self, link: Path, leads_to: Path) -> None:
        self.link, self.leads_to = link, leads_to

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 1:
            self.link.symlink_to(self.leads_to)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.json").write_text("mine", encoding="utf-8")
    run = tmp_path / "run"
    plants = Plants(run / "_checkpoint-2.partial", precious)
    with pytest.raises(RunFolderError, match=r"_checkpoint-2\.partial is a link to .*precious"):
        tiny.trainer(run, callbacks=[plants], **{**OPTIONS, "eval_strategy": "no"}).train()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").symlink_to(precious / "config.json")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is a link"):
        tiny.trainer(tmp_path / "other")
    assert [path.name for path in precious.iterdir()] == ["config.json"]
    assert (precious / "config.json").read_text(encoding="utf-8") == "mine"


def test_metrics_of_another_folder_are_copied_from_a_file_alone(trainer: SFTTrainer, copied: Path) -> None:
    (copied.parent / "metrics.jsonl").unlink()
    (copied.parent / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is no plain file"):
        resume(trainer, copied)
