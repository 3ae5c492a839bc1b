"""`sartor inspect`: exit codes, files, JSON, options, and what is never loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from sartor.cli.inspect_flags import FLAGS, read, usage
from sartor.cli.main import main
from sartor.errors import ConfigurationError

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a configuration, and weights that cannot be read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: number for number, token in enumerate([*special, *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=special[:2]
    )
    made.chat_template = CHATML
    made.save_pretrained(folder)
    transformers.LlamaConfig(vocab_size=len(made), max_position_embeddings=200).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    return folder


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(
        tmp_path / "rows.jsonl", [row("What is a fjord?", "An inlet of the sea."), row("And 2 + 2?", "It is 4.")]
    )


def inspect(*argv: str | Path) -> int:
    return main(["inspect", *map(str, argv)])


def test_clean_rows_are_shown_and_give_0(model: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(rows, "--model", model, "--assistant_only_loss") == 0
    told = capsys.readouterr()
    assert told.out.startswith("train: 2 rows of messages; ")
    assert "⟦An inlet of the sea.<|im_end|>⟧" in told.out
    assert "Findings: none" in told.out
    assert told.err == ""


def test_bad_rows_are_findings_and_give_1(model: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "robot", "content": "Hi"}]}\n{"messages": [\n')
    assert inspect(rows, "--model", model) == 1
    told = capsys.readouterr().out
    assert "rows.jsonl, line 3" in told
    assert "rows.jsonl, line 4" in told
    assert "An inlet of the sea." in told
    assert inspect(rows, "--model", model, "--bad-rows", "skip") == 0


def test_rows_of_which_none_can_be_used_give_1(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(write(tmp_path / "bad.jsonl", ["{nothing\n"]), "--model", model) == 1
    captured = capsys.readouterr()
    assert "bad.jsonl, line 1" in captured.out + captured.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], ["DATA is missing", "--model is missing"]),
        (["no.jsonl", "--model", "MODEL"], ["no.jsonl"]),
        (["ROWS", "--model", "/nowhere"], ["/nowhere"]),
        (["ROWS", "--model", "MODEL", "--max_lenght", "5"], ["did you mean --max_length?"]),
        (["ROWS", "--model", "MODEL", "--rows", "-1"], ["--rows -1 is no number of rows"]),
        (["ROWS", "--model", "MODEL", "--data", "ROWS"], ["--data say the same"]),
        (["ROWS", "--model", "MODEL", "--html", "no/such/folder/x.html"], ["there is no folder"]),
        (["ROWS", "--model", "MODEL", "--packing", "--max_length", "none"], ["max_length"]),
        (["ROWS", "--model", "MODEL", "--completion_only_loss"], ["completion_only_loss=True needs a prompt"]),
    ],
)
def test_wrong_usage_gives_2_and_says_what_to_do(
    argv: list[str], said: list[str], model: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"ROWS": str(rows), "MODEL": str(model)}
    assert inspect(*(known.get(word, word) for word in argv)) == 2
    told = capsys.readouterr().err
    assert told.startswith("sartor inspect: ")
    assert all(text in told for text in said), told
    assert "Traceback" not in told


def test_json_has_the_documented_keys_and_nothing_else_is_printed(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write(tmp_path / "held_out.jsonl", [row("What is a fjord?", "An inlet of the sea.")])
    assert inspect(rows, "--model", model, "--eval_data", held_out, "--json", "--max_length", "30") == 0
    whole = json.loads(capsys.readouterr().out)
    page = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text(encoding="utf-8")
    assert (whole["schema"], whole["model"], whole["has_errors"]) == (1, str(model), False)
    assert whole["options"] == {"max_length": "30"}
    train, evaluation = whole["data"]
    assert (train["name"], evaluation["name"], evaluation["source"]) == ("train", "eval", str(held_out))
    assert train["lengths"]["cuts"][0].keys() == {"max_length", "num_rows", "num_tokens", "num_targets", "num_emptied"}
    assert [finding["kind"] for finding in evaluation["findings"]][:2] == ["longer_than_max_length", "eval_in_train"]
    (finding,) = [finding for finding in evaluation["findings"] if finding["kind"] == "eval_in_train"]
    assert (finding["count"], finding["first"][0]["where"]) == (1, "held_out.jsonl, line 1")
    for table in (whole, train, train["summary"], train["lengths"], finding, finding["first"][0], train["samples"][0]):
        assert all(f"`{key}`" in page for key in table), [key for key in table if f"`{key}`" not in page]


def test_several_sources_are_inspected_and_then_their_mixture_counted_as_in_training(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sartor.batching.packing import pack
    from sartor.data.encoding.encode import prepare
    from sartor.data.encoding.mixture import prepare_mixture, read_parts
    from sartor.records import DataSettings

    chats = [row(f"What is {number} + 2?", f"It is {number + 2}.") for number in range(30)]
    same = row("What is a fjord?", "An inlet of the sea.")
    one, two = write(tmp_path / "one.jsonl", [*chats[:20], same]), write(tmp_path / "two.jsonl", [*chats[20:], same])
    held_out = write(tmp_path / "held_out.jsonl", [chats[25]])
    options = ("--model", model, "--max_length", "90", "--eval_data", held_out, "--json", "--out", tmp_path / "out")
    assert inspect(f"{one}:0.7", f"{two}:0.3", *options) == 0
    sets = json.loads(capsys.readouterr().out)["data"]
    assert [one["name"] for one in sets] == [f"train ({one})", f"train ({two})", "train", "eval"]
    (finding,) = [finding for finding in sets[1]["findings"] if finding["kind"] == "in_other_source"]
    assert (finding["count"], finding["first"][0]["where"]) == (1, "two.jsonl, line 11")
    assert "as one.jsonl, line 21" in finding["first"][0]["excerpt"]
    (finding,) = [finding for finding in sets[3]["findings"] if finding["kind"] == "eval_in_train"]
    assert "as two.jsonl, line 6" in finding["first"][0]["excerpt"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    expected = prepare_mixture(
        read_parts([(str(one), 0.7), (str(two), 0.3)]),
        DataSettings(max_length=90, data_cache="none"),
        "train",
        lambda rows, settings, name: prepare(rows, tokenizer, settings, name=name, pack=pack),
    ).summary
    for name in ("num_rows", "num_examples", "num_tokens", "num_targets", "num_truncated_rows", "source_rows"):
        assert sets[2]["summary"][name] == getattr(expected, name), name
    assert any("weight 0.7" in note for note in sets[2]["summary"]["notes"])
    page = (tmp_path / "out" / "inspection.html").read_text(encoding="utf-8")
    assert all(f'<section id="data-{number}">' in page for number in range(4))


def test_a_bad_row_of_one_source_is_told_and_gives_1(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path / "bad.jsonl", [row("Hi", "Yo"), "{nothing\n"])
    assert inspect(rows, bad, "--model", model) == 1
    told = capsys.readouterr()
    assert "bad.jsonl, line 2" in told.out
    assert told.err == ""


def test_a_folder_gets_page_picture_and_json(model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert inspect(rows, "--model", model, "--out", folder, "--rows", "1") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["inspection.html", "inspection.json", "lengths.png"]
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "inspection.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(json.loads((folder / "inspection.json").read_text(encoding="utf-8"))["data"][0]["samples"]) == 1


def test_weights_are_not_loaded_and_rows_longer_than_the_context_are_found(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    long = write(tmp_path / "long.jsonl", [row("Hi", "word " * 100)])
    assert inspect(long, "--model", model, "--max_length", "none") == 0
    assert "Longer than the 200 tokens that the model can see" in capsys.readouterr().out


def test_a_folder_with_a_tokenizer_alone_is_enough(model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    assert inspect(rows, "--model", folder) == 0


def test_the_command_line_of_a_training_run_is_accepted_and_what_has_no_part_is_said(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {rows}\nmax_length: 40\nlearning_rate: 1.0e-3\nbf16: true\n", encoding="utf-8")
    assert inspect("--config", config, "--model", model, "--output_dir", tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert "longer than max_length=40" in told
    assert "Options that have no part in this: learning_rate, bf16, output_dir." in told
    assert not (tmp_path / "run").exists()
    assert not Path("inspection").exists()


def test_the_help_names_every_option_that_has_a_part() -> None:
    text = usage()
    for name in (
        "max_length",
        "map",
        "assistant_only_loss",
        "bad_rows",
        "chat_template_path",
        "html",
        "json",
        "eval_data",
    ):
        assert f"{name} " in text or f"{name}\n" in text
    assert "learning_rate" not in text
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


def test_problems_are_told_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(["--max_lenght", "3", "--rows", "x"])
    assert len(caught.value.problems) == 4
