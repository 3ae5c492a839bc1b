"""The page is well-formed, needs nothing else, runs nothing that stands in a row, and shows what is trained."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sartor.data.inspection.page import page
from tests.data.inspection.helpers import conversation, inspect, sentence

VOID = {"meta", "input", "br"}
ELEMENTS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "script",
        "body",
        "header",
        "main",
        "footer",
        "nav",
        "section",
        "article",
    ),
    *("h1", "h2", "h3", "p", "b", "i", "u", "a", "code", "pre", "kbd", "small", "br", "span", "div", "ul", "li"),
    *("dl", "dt", "dd", "details", "summary", "figure", "figcaption", "svg", "rect", "line"),
    *("table", "thead", "tbody", "tr", "th", "td", "label", "input", "select", "option"),
}
HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}"


class Elements(HTMLParser):
    """All elements with their attributes and text; complains where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self._open, [name for name, _ in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.elements.append((tag, dict(attrs), texts))
        if tag not in VOID:
            self._open.append((tag, texts))

    def handle_endtag(self, tag: str) -> None:
        # `li`, `tr` and so on may stay open in HTML; ours do not.
        name, _ = self._open.pop()
        assert name == tag

    def handle_data(self, data: str) -> None:
        for _, texts in self._open:
            texts.append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(texts)) for name, attributes, texts in self.elements if name == tag]


@pytest.fixture
def made(tokenizer: Any) -> Elements:
    rows = [conversation(1), conversation(2, question=HOSTILE), conversation(3, answer="...\nx\x1b[31m\u202ey 漢")]
    rows.append({"messages": [{"role": HOSTILE, "content": HOSTILE}]})
    return Elements(page([inspect(rows, tokenizer, assistant_only_loss=True, max_length=120, num_samples=9)]))


def test_nothing_of_a_row_becomes_an_element(made: Elements) -> None:
    assert {name for name, _, _ in made.elements} <= ELEMENTS
    assert len(made.all("script")) == 1
    (shown,) = [text for attributes, text in made.all("article") if "alert(1)" in text]
    assert HOSTILE in shown.replace("▯", "")
    for _, attributes, _ in made.elements:
        assert not any(name.startswith("on") or name in ("src", "style", "action") for name in attributes)


def test_the_page_loads_nothing_and_allows_its_own_script_and_style_alone(made: Elements) -> None:
    assert not any("http" in (value or "") for _, attributes, _ in made.elements for value in attributes.values())
    assert all((attributes.get("href") or "#").startswith("#") for attributes, _ in made.all("a"))
    (policy,) = [attributes["content"] or "" for attributes, _ in made.all("meta") if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        ((_, content),) = made.all(tag)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert not re.search(r"https?:|@import|url\(|fetch|XMLHttp|innerHTML|eval", content)


def test_trained_tokens_are_b_and_others_i_and_each_tells_its_id(tokenizer: Any) -> None:
    inspection = inspect([conversation(1, answer="größer")], tokenizer, assistant_only_loss=True, max_length=None)
    elements = Elements(page([inspection]))
    tokens = [
        (name, attributes["title"], "".join(texts)) for name, attributes, texts in elements.elements
        if name in "bi" and "title" in attributes
    ]  # fmt: skip
    (sample,) = inspection.samples
    assert [re.match(r"id (\d+), ", title or "")[1] for _, title, _ in tokens] == [
        str(token.id) for token in sample.tokens
    ]  # type: ignore[index]
    assert "".join(text for name, _, text in tokens if name == "b").replace("▯", "") == "größer<|im_end|>"
    assert all(("not trained" in (title or "")) is (name == "i") for name, title, _ in tokens)


def test_line_ends_are_marked_and_control_characters_shown_by_their_code(made: Elements) -> None:
    (shown,) = [text for _, text in made.all("pre") if "‹1B›" in text]
    assert "...↵\nx‹1B›[31m‹202E›y 漢" in shown.replace("▯", "")


def test_findings_lead_to_their_rows(made: Elements) -> None:
    anchors = {attributes["id"] for attributes, _ in made.all("article")}
    links = {(attributes["href"] or "")[1:] for attributes, _ in made.all("a")}
    assert links
    assert links <= anchors


def test_training_and_evaluation_rows_are_on_one_page(tokenizer: Any) -> None:
    one, two = inspect([conversation(1)], tokenizer), inspect([conversation(2)], tokenizer)
    elements = Elements(page([one, two]))
    assert len(elements.all("section")) == 2


def test_the_histogram_has_a_bar_for_each_length_and_marks_what_is_cut(tokenizer: Any) -> None:
    rows = [{"input_ids": [5] * length} for length in (10, 10, 11, 14)]
    elements = Elements(page([inspect(rows, tokenizer, max_length=11)]))
    bars = elements.all("rect")
    assert [attributes["height"] for attributes, _ in bars] == ["100.0", "50.0", "0.0", "0.0", "50.0"]
    assert [("class" in attributes) for attributes, _ in bars] == [False, False, True, True, True]
    assert elements.all("title")[1][1] == "10 tokens: 2 rows"


def test_a_data_set_without_usable_rows_still_has_a_page(tokenizer: Any) -> None:
    text = page([inspect([{"messages": [{"role": "robot", "content": sentence(1)}]}], tokenizer)])
    assert "1 error" in text
    Elements(text)
