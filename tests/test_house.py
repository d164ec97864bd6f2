"""The house rules that no linter knows: how long a module and a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "latentprint"
MODULE = 420
FUNCTION = 65


def lengths(source: str) -> Iterator[tuple[str, int, int]]:
    """(name, line, lines of its body less its docstring) of every function in a module, methods too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, node.lineno, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_long(file: Path) -> list[str]:
    """What is too long in a file, each as a sentence."""
    text = file.read_text(encoding="utf-8")
    lines = text.count("\n")
    found = [] if lines <= MODULE else [f"{file.name} has {lines} lines, above {MODULE}: split it by meaning"]
    for name, line, count in lengths(text):
        if count > FUNCTION:
            found.append(
                f"{file.name}:{line}: {name} has {count} lines below its docstring, above {FUNCTION}:"
                " give its steps names"
            )
    return found


def test_modules_and_functions_stay_short():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 100, f"too few modules were found below {SOURCE.name}"
    found = [sentence for file in files for sentence in too_long(file)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("lines", "faults"), [(FUNCTION, 0), (FUNCTION + 1, 1)])
@pytest.mark.parametrize("indent", ["", "    "])
def test_a_long_function_is_found_whatever_its_docstring(tmp_path, lines, faults, indent):
    written = [f"{indent}def f():", f'{indent}    """One.\n\n    Two.\n{indent}    """']
    written += [f"{indent}    x = {i}" for i in range(lines)]
    file = tmp_path / "planted.py"
    file.write_text("\n".join((["class A:"] if indent else []) + written) + "\n")
    assert len(too_long(file)) == faults


@pytest.mark.parametrize(("lines", "faults"), [(MODULE, 0), (MODULE + 1, 1)])
def test_a_long_module_is_found(tmp_path, lines, faults):
    file = tmp_path / "planted.py"
    file.write_text("x = 1\n" * lines)
    assert len(too_long(file)) == faults
