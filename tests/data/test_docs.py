"""The pages of this room show what its code prints."""

import json
from pathlib import Path

import pytest

from .conftest import NEOX, make_neox_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.skipif(not NEOX.is_file(), reason=f"{NEOX} is not there")
def test_the_example_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    row = page.split("```json\n")[1].split("```")[0]
    code = page.split("```python\n")[1].split("```")[0]
    printed = page.split("this prints what is trained between ⟦ and ⟧:\n\n```\n")[1].split("```")[0]
    json.loads(row)
    (tmp_path / "train.jsonl").write_text(row, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(code, {"tokenizer": make_neox_tokenizer()})
    assert capsys.readouterr().out.strip() == printed.strip()


def test_the_example_of_targets_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.with_name("targets.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    printed = page.split("prints\n\n```\n")[1].split("```")[0]
    exec(code, {})
    assert capsys.readouterr().out == printed
