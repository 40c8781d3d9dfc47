"""Training text without a download: the documentation and the code of installed Python packages.

The standard library, sympy, mpmath, networkx, numpy, torch: megabytes of edited English about programs and
mathematics, and the programs, under the PSF or a BSD licence, on any machine that can train. Files are read
and parsed, never imported, so nothing of it runs. What repeats (an inherited docstring), what no person
wrote (tables, generated parsers) and what other people wrote (vendored copies) is left out.

The order is fixed: packages as given, files by module path. A module's documentation and code share a group.
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import platform
import re
import sysconfig
import tokenize
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from shard.data.document import Document
from shard.errors import ShardError

STANDARD_LIBRARY = "stdlib"  # the name that stands for the standard library in `packages`
TOPICS = "pydoc_data.topics"  # the language reference as one dict of texts: documentation in a module's clothes
MIN_BYTES = 200  # a shorter document says little beyond its own title

# Folders and files that are not the package itself: its tests, other people's packages, generated parsers.
_TESTS = re.compile(r"tests?|test_\w*|\w+_tests?|conftest|benchmarks")
_FOREIGN = {"__pycache__", "_vendor", "_vendored", "vendored", "third_party", "_bundled", "_antlr", "lib2to3"}
_LEFT_OUT = {  # by the last two names of the module path
    ("testing", "_private"),  # numpy's and torch's helpers for their own tests
    ("testing", "_internal"),
    ("encodings",),  # the standard library's: a hundred character maps from one template
}

# Beyond any of these a module is a table, not code. Set by looking at the six packages above.
MAX_LINE_BYTES = 400
MAX_DIGIT_SHARE = 0.15
MAX_SAME_SHAPE_SHARE = 0.4  # of the lines, those of the most frequent shape, in a module of MIN_SHAPED_LINES or more
MIN_SHAPED_LINES = 40
MIN_COMPRESSED_SHARE = 0.12
_GENERATED = re.compile(
    r"auto-?generated (by|file)|file (is|was) (automatically )?generated|do not edit", re.IGNORECASE
)
_WORDS = re.compile(rb"\"[^\"\n]*\"|'[^'\n]*'|\w+")  # what a line's shape leaves open

_LICENCE = re.compile(r"copyright|licen[cs]e|all rights reserved|redistribut|SPDX", re.IGNORECASE)
_DIRECTIVE = re.compile(
    r"#!|#.*-\*-|# *(mypy|ruff|flake8|pylint|pyright|noqa|fmt|type|vim|owner\(s\))\b *[:=]", re.IGNORECASE
)

_ATTACHING_CALL = re.compile(r"_?add_(newdoc|docstr)\w*")  # numpy: add_newdoc(...); torch: _add_docstr(...)
MIN_ATTACHED_CHARS = 80  # a shorter string argument of such a call is a name or a signature
MIN_ATTACHED_SHARE = 0.3  # of a module's source: from here on the module is documentation, not code

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def read_installed(packages: Sequence[str], content: Literal["documentation", "code"]) -> Iterator[Document]:
    """Yield a document per module: its docstrings, or its source without them.

    A package that is not installed raises ShardError before the first document. A file that does not decode
    or parse is skipped: packages ship templates, and samples for other versions of Python.
    """
    modules = [module for package in packages for module in find_modules(package)]
    seen: set[bytes] = set()  # digests of the docstrings so far
    for module, path in modules:
        if content == "code" and module == TOPICS:
            continue
        try:
            source, tree = _parse(path)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if content == "code":
            documents = _code(module, source, tree)
        elif module == TOPICS:
            documents = _topics(tree, seen)
        else:
            documents = _documentation(module, tree, seen)
        yield from (document for document in documents if len(document.text.encode()) >= MIN_BYTES)


def _parse(path: Path) -> tuple[str, ast.Module]:
    """Return the source, decoded as PEP 263 says, and its tree."""
    with tokenize.open(path) as file:
        source = file.read()
    collecting = gc.isenabled()
    gc.disable()  # nothing of a growing tree is garbage; looking for it would take a fifth of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return source, ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def find_modules(package: str) -> list[tuple[str, Path]]:
    """Return the (module path, file) pairs of a package, sorted, without importing it."""
    if package == STANDARD_LIBRARY:
        return sorted(_walk(Path(sysconfig.get_path("stdlib")), ()))
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module made by hand, such as __main__
        spec = None
    if spec is not None and spec.submodule_search_locations is not None:
        return sorted(pair for root in spec.submodule_search_locations for pair in _walk(Path(root), (package,)))
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        return [(package, Path(spec.origin))]
    raise ShardError(
        f"package {package!r} of source kind 'installed' is not installed: "
        f"pip install {package}, or take it out of the recipe's packages"
    )


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each package, for the ledger: the text changes with it."""
    versions = {}
    for package in packages:
        find_modules(package)  # raises for what is not there
        try:
            versions[package] = (
                platform.python_version() if package == STANDARD_LIBRARY else importlib.metadata.version(package)
            )
        except importlib.metadata.PackageNotFoundError:  # the distribution has another name, or there is none
            names = importlib.metadata.packages_distributions().get(package, [])
            versions[package] = importlib.metadata.version(names[0]) if names else "unknown"
    return versions


def _walk(folder: Path, parents: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yield the modules under a folder; what is no identifier (site-packages, config-3.11-x) is none."""
    for path in folder.iterdir():
        name = path.stem if path.suffix == ".py" else path.name
        module = (*parents, name)
        if not name.isidentifier() or name in _FOREIGN or _TESTS.fullmatch(name) or module[-2:] in _LEFT_OUT:
            continue
        if path.suffix == ".py" and path.is_file():
            yield ".".join(parents if name == "__init__" and parents else module), path
        elif path.is_dir():
            yield from _walk(path, module)


def _definitions(
    body: list[ast.stmt], outer: _Definition | None, path: str
) -> Iterator[tuple[_Definition, _Definition | None, str]]:
    """Yield each class and function, however nested, in source order, with its enclosing one and dotted path.

    Only statements are visited, which is several times faster than ast.walk.
    """
    for node in body:
        if isinstance(node, _Definition):
            name = f"{path}.{node.name}" if path else node.name
            yield node, outer, name
            yield from _definitions(node.body, node, name)
        else:
            for field in ("body", "handlers", "orelse", "finalbody", "cases"):
                if blocks := getattr(node, field, None):
                    yield from _definitions(blocks, outer, path)


# Code


def _code(module: str, source: str, tree: ast.Module) -> Iterator[Document]:
    """The module's source, unless it is generated, a table, or documentation in the form of calls."""
    attached = sum(len(text) for _, text in _attached_documentation(module, tree))
    if attached > MIN_ATTACHED_SHARE * len(source) or _GENERATED.search(source, 0, 500):
        return
    lines = _cut_licence(_cut_docstrings(source, tree)).split("\n")
    code = re.sub(r"\n{4,}", "\n\n\n", "\n".join(map(str.rstrip, lines))).strip()
    if code and not _is_table(code.encode()):
        yield Document(f"# module: {module}\n\n{code}\n", module)


def _cut_docstrings(source: str, tree: ast.Module) -> str:
    """Return the source without docstrings; a body that was nothing else becomes `pass`.

    The cut runs from the docstring to whatever follows it, which so takes over the docstring's indentation.
    """
    encoded = source.encode()  # ast counts columns in bytes
    line_starts = list(itertools.accumulate((len(line) + 1 for line in encoded.split(b"\n")), initial=0))
    pieces, kept_to = [], 0
    for node in (tree, *(definition for definition, _, _ in _definitions(tree.body, None, ""))):
        if ast.get_docstring(node, clean=False) is None:
            continue
        statement = node.body[0]
        assert statement.end_lineno is not None and statement.end_col_offset is not None
        start = line_starts[statement.lineno - 1] + statement.col_offset
        end = line_starts[statement.end_lineno - 1] + statement.end_col_offset
        pieces.append(encoded[kept_to:start])
        if len(node.body) == 1 and node is not tree:
            pieces.append(b"pass")
            kept_to = end
        else:
            rest = re.compile(rb"[\s;]*").match(encoded, end)
            kept_to = rest.end() if rest else end
    return b"".join([*pieces, encoded[kept_to:]]).decode()


def _cut_licence(code: str) -> str:
    """Cut directives to tools, and what speaks of copyright, from the comments that a file opens with."""
    header = re.match(r"(?:[^\S\n]*(?:#[^\n]*)?\n)*", code)
    assert header is not None  # it matches the empty string
    lines = [line for line in header.group().splitlines() if not _DIRECTIVE.match(line)]
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    kept = [block.strip() for block in blocks if block.strip(" #\n") and not _LICENCE.search(block)]
    return "\n\n".join([*kept, code[header.end() :]])


def _is_table(code: bytes) -> bool:
    """Tell data in Python's clothes from code: very long lines, mostly digits, or one line over and over."""
    if max(map(len, code.split(b"\n"))) > MAX_LINE_BYTES:
        return True
    if len(code) - len(code.translate(None, b"0123456789")) > MAX_DIGIT_SHARE * len(code):
        return True
    if len(zlib.compress(code, 1)) < MIN_COMPRESSED_SHARE * len(code):
        return True
    shapes = Counter(line for line in map(bytes.strip, _WORDS.sub(b"x", code).split(b"\n")) if len(line) > 1)
    total = shapes.total()
    return total >= MIN_SHAPED_LINES and max(shapes.values()) > MAX_SAME_SHAPE_SHARE * total


# Documentation


def _documentation(module: str, tree: ast.Module, seen: set[bytes]) -> Iterator[Document]:
    """The module's docstring, then each documented definition and attached text under its heading."""
    parts = [module]
    if (text := _docstring(tree)) and _is_new(text, seen):
        parts.append(text)
    for node, outer, path in _definitions(tree.body, None, ""):
        if (text := _docstring(node)) and _is_new(text, seen):
            parts += [_heading(node, outer, path), text]
    for heading, text in _attached_documentation(module, tree):
        if _is_new(text, seen):
            parts += [heading, text] if heading else [text]
    if len(parts) > 1:
        yield Document("\n\n".join(parts) + "\n", module)


def _topics(tree: ast.Module, seen: set[bytes]) -> Iterator[Document]:
    """One document for each topic of the language reference."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name, text in sorted(topics.items()):
                if _is_new(text, seen):
                    yield Document(text.strip() + "\n", f"{TOPICS}.{name}")


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Say whether the text, whatever its line breaks, is new: a copy could cross the split."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(errors="replace"), digest_size=16).digest()
    new = digest not in seen
    seen.add(digest)
    return new


def _docstring(node: ast.Module | _Definition) -> str:
    """Return the cleaned docstring, empty for none."""
    return _clean(ast.get_docstring(node, clean=False) or "")


def _clean(text: str) -> str:
    """Undo the indentation, strip the lines, replace what has no UTF-8 (a surrogate that was escaped)."""
    lines = inspect.cleandoc(text).encode("utf-8", "replace").decode().split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _heading(node: _Definition, outer: _Definition | None, path: str) -> str:
    """Head a definition as a reference manual does: a call as a user writes it, a class with its bases."""
    if isinstance(node, ast.ClassDef):
        return f"class {path}({', '.join(map(ast.unparse, node.bases))})" if node.bases else f"class {path}"
    if isinstance(outer, ast.ClassDef):
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if decorators & {"property", "cached_property", "functools.cached_property"}:
            return path
        if "staticmethod" not in decorators:  # nobody writes self or cls in the call
            del (node.args.posonlyargs or node.args.args)[:1]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{path}({ast.unparse(node.args)}){returns}"


# Documentation that a module attaches to compiled functions


def _attached_documentation(module: str, tree: ast.Module) -> list[tuple[str, str]]:
    """Return the (heading, text) pairs of a module's top-level add_newdoc (numpy) and add_docstr (torch).

    In a module that is named for it (mpmath.function_docs) texts assigned to a name count too.
    """
    documents: list[tuple[str, str]] = []
    fields: dict[str, str] | None = None
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name() as name], value=ast.Call() as call) if _attaches(call):
                arguments = [name, *call.args[1:]]
            case ast.Expr(value=ast.Call() as call) if _attaches(call):
                arguments = call.args
            case ast.Assign(targets=[ast.Name() as name], value=value) if module.endswith("docs"):
                arguments = [name, value]
            case _:
                continue
        fields = _format_fields(tree) if fields is None else fields
        names: list[str] = []
        for argument in _flatten(arguments):
            text = _string(argument, fields)
            if text is not None and len(text) >= MIN_ATTACHED_CHARS:
                documents.append((".".join(names), _clean(text)))
            elif text is not None and text.replace(".", "").isidentifier():
                names.append(text)
            elif isinstance(argument, ast.Name | ast.Attribute):
                names.append(ast.unparse(argument))
    return documents


def _attaches(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _ATTACHING_CALL.fullmatch(name) is not None
    return False


def _flatten(arguments: list[ast.expr]) -> Iterator[ast.expr]:
    for argument in arguments:
        if isinstance(argument, ast.Tuple | ast.List):
            yield from _flatten(argument.elts)
        else:
            yield argument


def _string(node: ast.expr | None, fields: dict[str, str]) -> str | None:
    """Return the text of a string expression (a constant, a sum, template.format(...)), else None."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _string(left, fields), _string(right, fields)
            return None if first is None or second is None else first + second
        case ast.Call(func=ast.Attribute(value=inner, attr="format")):
            template = _string(inner, fields)
            try:  # a field that is not known here, because it was imported, becomes empty
                return template and template.format_map(defaultdict(str, fields))
            except (ValueError, IndexError, AttributeError):
                return template
    return None


def _format_fields(tree: ast.Module) -> dict[str, str]:
    """Collect what torch fills its templates with: dict entries, the paragraphs of parse_kwargs("...")."""
    fields: dict[str, str] = {}
    assigned = (node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value)
    for node in (part for value in assigned for part in ast.walk(value)):
        match node:
            case ast.Call(func=ast.Name(id="parse_kwargs"), args=[argument]):
                for paragraph in re.split(r"\n {4}(?! )", _string(argument, {}) or ""):
                    if paragraph.strip():
                        fields.setdefault(paragraph.split()[0], paragraph.strip())
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    name, text = _string(key, {}), _string(value, {})
                    if name is not None and text is not None:
                        fields.setdefault(name, text)
    return fields
