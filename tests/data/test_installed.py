"""Training text from installed packages: what is kept, what is cut, and that the split cannot leak."""

import ast
import platform
import textwrap
from pathlib import Path

import pytest

from shard.data.document import Document
from shard.data.installed import (
    STANDARD_LIBRARY,
    TOPICS,
    _cut_docstrings,
    _cut_licence,
    _is_table,
    find_modules,
    package_versions,
    read_installed,
)
from shard.errors import ShardError

PROSE = "A text which is long enough for its module to be kept as a document of its own, at two hundred bytes. " * 2


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")


def filler(name: str) -> str:
    """Return code that is long enough to be kept."""
    return "".join(f"{name}_{word} = compute({word!r}) + other\n" for word in ("one", "two", "three", "four")) * 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an importable package that fails when it is imported."""
    shape = f'''\
        #!/usr/bin/env python
        # Copyright 2020 Somebody. All rights reserved.

        # How areas are computed.
        """Shapes. {PROSE}"""
        import math


        class Circle(Shape):
            """A round one. {PROSE}"""

            def area(self, scale: float = 1.0) -> float:
                """Return the area, not the circumference."""
                return scale * math.pi * self.radius**2

            @staticmethod
            def unit(name):
                """Return the circle of radius one."""
        ''' + textwrap.indent(filler("radius"), " " * 8)
    repeat = f'''\
        """Other shapes. {PROSE}"""
        class Ellipse:
            """A   round one.
            {PROSE}"""
        '''
    attached = f'''\
        common = parse_kwargs("""
            dim (int): the dimension.
        """)
        add_newdoc("fake.core", "array", ("shape", """
            The shape of it. {PROSE}
            """))
        absolute = _add_docstr(_fake.fake_abs, r"""
        abs(input) -> Tensor

        {PROSE}
        """ + """
        Args:
            {{dim}}{{unknown}}
        """.format(**common))
        '''
    files = {
        "__init__.py": "raise RuntimeError('imported')\n" + filler("package"),
        "shape.py": shape,
        "stretched.py": repeat,
        "attached.py": attached,
        "broken.py": "def broken(:\n" + filler("broken"),
        "tests/test_shape.py": f'"""{PROSE}"""\n' + filler("test"),
        "_vendor/copy.py": f'"""{PROSE}"""\n' + filler("copy"),
        "not-a-module.py": f'"""{PROSE}"""\n' + filler("dash"),
        "small.py": "x = 1\n",
        "table.py": "TABLE = [\n" + "    (12345678, 98765432, 13579246),\n" * 40 + "]\n",
    }
    write(tmp_path / "shard_fake", files)
    (tmp_path / "shard_fake/latin.py").write_bytes(b'"""caf\xe9"""\n' + filler("latin").encode())
    (tmp_path / "shard_fake/declared.py").write_bytes(
        f'# -*- coding: latin-1 -*-\n"""Caf\u00e9. {PROSE}"""\n{filler("declared")}'.encode("latin-1")
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "shard_fake"


@pytest.fixture
def code(package: str) -> dict[str, str]:
    return texts(read_installed([package], "code"))


@pytest.fixture
def documentation(package: str) -> dict[str, str]:
    return texts(read_installed([package], "documentation"))


def texts(documents: object) -> dict[str, str]:
    result: dict[str, str] = {}
    for document in documents:  # type: ignore[attr-defined]
        assert isinstance(document, Document)
        assert document.group not in result
        result[document.group] = document.text
    return result


class StripDocstrings(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
        return node


def assert_only_docstrings_cut(source: str) -> None:
    tree = ast.parse(source)
    cut = _cut_docstrings(source, tree)
    assert ast.unparse(ast.parse(cut)) == ast.unparse(StripDocstrings().visit(tree))


@pytest.mark.parametrize(
    "source",
    [
        'def f(): "one line"\n',
        'def f(): "one line"; return 1\n',
        'def f(): "one line";\n',
        'class A:\n    """A."""  # a comment\n\n\n# at the margin\n    @decorated\n    def f(self): ...\n',
        'async def f():\n    ("a"\n     "b")\n    await g()\n',
        "if x:\n    def f():\n        'Caf\u00e9.'\n        def g():\n            '''Inner \u20ac.'''\n",
        'match x:\n    case 1:\n        def f():\n            """F."""\n            return 1\n',
        'try:\n    pass\nexcept E:\n    class A: """A."""\nfinally:\n    def f():\n        """F."""\n',
        '"""Module only."""\n',
        'x = """no docstring"""\n"""nor this"""\ndef f():\n    return """nor this"""\n',
    ],
)
def test_cutting_docstrings_leaves_the_same_program(source: str) -> None:
    assert_only_docstrings_cut(source)


@pytest.mark.parametrize("module", ["argparse", "asyncio.events", "contextlib", "heapq", "json.decoder", "queue"])
def test_cutting_docstrings_of_the_standard_library_leaves_the_same_program(module: str) -> None:
    source = dict(find_modules(STANDARD_LIBRARY))[module].read_text(encoding="utf-8")
    assert_only_docstrings_cut(source)


def test_code_has_its_module_first_and_no_docstring_or_licence(code: dict[str, str]) -> None:
    text = code["shard_fake.shape"]
    assert text.startswith("# module: shard_fake.shape\n\n# How areas are computed.\n\nimport math\n")
    assert "A round one" not in text and "Copyright" not in text and "#!" not in text
    assert "        return scale * math.pi" in text


def test_documentation_is_headed_by_calls_as_a_user_writes_them(documentation: dict[str, str]) -> None:
    text = documentation["shard_fake.shape"]
    headings = [line for line in text.splitlines() if line.startswith(("class ", "Circle."))]
    assert text.startswith("shard_fake.shape\n\nShapes. ")
    assert headings == ["class Circle(Shape)", "Circle.area(scale: float=1.0) -> float", "Circle.unit(name)"]


def test_documentation_and_code_have_the_same_groups(code: dict[str, str], documentation: dict[str, str]) -> None:
    assert {"shard_fake", "shard_fake.shape", "shard_fake.declared"} == set(code)
    assert set(documentation) - set(code) == {"shard_fake.attached", "shard_fake.stretched"}


def test_a_repeated_docstring_appears_once(documentation: dict[str, str]) -> None:
    assert "class Circle(Shape)\n\nA round one." in documentation["shard_fake.shape"]
    assert "Ellipse" not in documentation["shard_fake.stretched"]


def test_attached_documentation_is_documentation_and_not_code(documentation: dict[str, str]) -> None:
    text = documentation["shard_fake.attached"]
    assert "\n\nfake.core.array.shape\n\nThe shape of it." in text
    assert "\n\nabsolute\n\nabs(input) -> Tensor\n" in text
    assert "dim (int): the dimension.\n" in text


def test_two_runs_are_equal_and_in_order(package: str) -> None:
    first, second = (list(read_installed([package], "documentation")) for _ in range(2))
    assert first == second
    assert [document.group for document in first] == sorted(document.group for document in first)


def test_encodings_are_honoured_and_what_does_not_decode_is_skipped(documentation: dict[str, str]) -> None:
    assert "Caf\u00e9." in documentation["shard_fake.declared"]
    assert "shard_fake.latin" not in documentation


@pytest.mark.parametrize("name", ["shard_no_such_package", "no.such.package", "sys"])
def test_a_package_that_is_not_installed_is_an_error_of_one_line(name: str) -> None:
    with pytest.raises(ShardError, match=r"^package '.*' of source kind 'installed' is not installed: pip .*$"):
        next(read_installed([name], "code"))
    with pytest.raises(ShardError):
        package_versions([name])


def test_versions(package: str) -> None:
    assert package_versions([STANDARD_LIBRARY, package]) == {
        "stdlib": platform.python_version(),
        package: "unknown",
    }
    assert package_versions(["pytest"])["pytest"] == pytest.__version__


def test_the_standard_library_is_without_tests_and_installed_packages() -> None:
    modules = [module for module, _ in find_modules(STANDARD_LIBRARY)]
    assert {"abc", "json", "json.decoder", "unittest.mock", TOPICS} <= set(modules)
    parts = {part for module in modules for part in module.split(".")}
    assert not parts & {
        "site-packages",
        "dist-packages",
        "pytest",
        "test",
        "idle_test",
        "lib2to3",
        "encodings",
    }


def test_topics_are_documents_and_never_code(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [module for module in find_modules(STANDARD_LIBRARY) if module[0] in {TOPICS, "heapq"}]
    monkeypatch.setattr("shard.data.installed.find_modules", lambda package: chosen)
    topics = texts(read_installed([STANDARD_LIBRARY], "documentation"))
    assert len(topics) > 60
    assert '"while"' in topics[f"{TOPICS}.while"]
    assert len(set(topics.values())) == len(topics)
    assert list(texts(read_installed([STANDARD_LIBRARY], "code"))) == ["heapq"]


def test_licence_blocks_are_cut_from_the_head_only() -> None:
    code = "# Licensed to you.\n# Some terms.\n\n# mypy: ignore-errors\n# About this file.\nx = 1\n# copyright\n"
    assert _cut_licence(code) == "# About this file.\n\nx = 1\n# copyright\n"


@pytest.mark.parametrize(
    ("code", "table"),
    [
        (filler("x").encode() * 3, True),  # one shape over and over
        (b"x = '" + b"ab" * 300 + b"'\n", True),
        (b"x = [1234, 5678, 9012]\n", True),
        (Path(__file__).read_bytes(), False),
    ],
)
def test_tables_are_told_from_code(code: bytes, table: bool) -> None:
    assert _is_table(code) is table
