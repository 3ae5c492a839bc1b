"""Compiles a template so that its output keeps its tags, and so that the message it is at is known.

What is changed in the code that Jinja generates from a template:

- output and `~` go through the environment, where Jinja would call `str()` and join plain strings;
- each turn of a `for` loop tells the environment what it is at, and the end of the loop puts back what was before;
- so does `{% set message = messages[i] %}` in a loop over numbers;
- what is assigned to a name while at a message is tagged as that message's (text that a template collects to write it
  later);
- the loop that writes the messages tells when it begins, and may skip turns (see `order`).

Nothing else: which branch is taken, and which text is written, stay the template's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from sartor.data.templates.provenance.order import writing_loops


class ShadowCodeGenerator(CodeGenerator):
    """Jinja's code generator for a `ShadowEnvironment`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._bodies: dict[int, tuple[nodes.Node, str]] = {}
        """Of each loop that is being compiled, by the identity of its body: its variable, and where the message before
        it is kept."""
        self._variables: list[nodes.Node] = []
        self._writing_loops: dict[int, int] = {}
        self._names: list[str] = []
        """That the template sets."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        """The whole: find the loop that writes the messages first."""
        self._writing_loops = writing_loops(node)
        self._names = sorted({name.name for name in node.find_all(nodes.Name) if name.ctx == "store"})
        super().visit_Template(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """A loop: remember the message before it, and put it back afterwards."""
        before = self.temporary_identifier()
        self.writeline(f"{before} = environment.at")
        if id(node.body) in self._writing_loops:
            found = [reference for name in self._names if (reference := frame.symbols.find_ref(name)) is not None]
            values = "".join(f"{reference}, " for reference in found)
            self.writeline(f"environment.begin({self._writing_loops[id(node.body)]}, lambda: ({values}))")
        self._bodies[id(node.body)] = (node.target, before)
        self._variables.append(node.target)
        super().visit_For(node, frame)
        self._variables.pop()
        del self._bodies[id(node.body)]
        self.writeline(f"environment.at = {before}")

    def blockvisit(self, nodes_: Iterable[nodes.Node], frame: Frame) -> None:
        """Statements; the body of a loop begins by saying what it is at."""
        loop = self._bodies.get(id(nodes_))
        if loop is not None:
            variable, before = loop
            if isinstance(variable, nodes.Name):
                self.writeline(f"environment.enter({frame.symbols.ref(variable.name)}, {before})")
                if id(nodes_) in self._writing_loops:
                    self.writeline(f"if environment.skips({frame.symbols.ref(variable.name)}): continue")
            else:
                self.writeline(f"environment.at = {before}")
        super().blockvisit(nodes_, frame)

    def visit_Assign(self, node: nodes.Assign, frame: Frame) -> None:
        """An assignment: tag what is collected; in a loop over numbers it may say which message is next."""
        super().visit_Assign(node, frame)
        if frame.toplevel:
            return
        for target in node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]:
            if isinstance(target, nodes.Name):
                reference = frame.symbols.ref(target.name)
                self.writeline(f"{reference} = environment.kept({reference})")
            elif isinstance(target, nodes.NSRef):
                reference = frame.symbols.ref(target.name)
                read = f"environment.getattr({reference}, {target.attr!r})"
                self.writeline(f"{reference}[{target.attr!r}] = environment.kept({read})")
        if isinstance(node.target, nodes.Name) and self._is_loops_item(node.node):
            self.writeline(f"environment.enter({frame.symbols.ref(node.target.name)}, environment.at)")

    def _is_loops_item(self, value: nodes.Node) -> bool:
        """Whether an expression is `x[i]`, i being the variable of the innermost loop."""
        if not self._variables or not isinstance(value, nodes.Getitem) or not isinstance(value.arg, nodes.Name):
            return False
        variable = self._variables[-1]
        return isinstance(variable, nodes.Name) and variable.name == value.arg.name

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`."""
        self.write("environment.texts_joined((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.shown({''.join(group)!r})"

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.shown(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")
