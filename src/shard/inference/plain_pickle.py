"""`.pt` files that others made, read as plain tensors and primitives: nothing runs, and no more memory is taken than
the file is long.

torch.load(weights_only=True) runs no code, but it lets a file ask for memory: a compressed entry that unpacks to
terabytes, a call of bytearray(10**10), a storage that is resized, a tensor of 10**9 elements that are all the same one.
So before torch sees the file, its layout and its pickle are compared with the little that torch.save writes of plain
content; the storages are then mapped from the file, where they cannot grow.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from shard.errors import ShardError

MAX_PICKLE_BYTES = 3 * 2**20  # a tensor takes 160 bytes: 20,000 of them, and some seconds of walking
MAX_ENTRIES = 100_000
MAX_DEPTH = 10_000  # tables are written a thousand keys at a time

_CALLABLE = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
_STORAGES = {
    f"torch {kind}Storage" for kind in ("Float", "BFloat16", "Half", "Double", "Long", "Int", "Short", "Char", "Byte")
} | {"torch BoolStorage"}
_OPCODES = frozenset(
    re.findall(
        r"\w+",
        "PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET BINUNICODE BININT BININT1 "
        "BININT2 LONG1 BINFLOAT NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS "
        "EMPTY_DICT SETITEM SETITEMS",
    )
)
_IN_PLACE = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # they change the object that they find
_ENTRY = re.compile(
    r"[^/]{1,200}/(data\.pkl|data/\d{1,9}|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)


class _NotPlainError(Exception):
    """What is wrong with a file."""


def load_plain(path: Path) -> Any:
    """The content of a `.pt` file, its tensors mapped from the file. ShardError, one line, for any other file."""
    try:
        _check_plain(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_tensors(content, path.stat().st_size)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: give the folder of a release bundle") from None
    except (
        Exception
    ) as error:  # zipfile, pickletools and torch raise many kinds for a file that is not what it should be
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ShardError(f"{path} is damaged or not a plain bundle file: {reason[:160]}") from None
    return content


def _check_plain(path: Path) -> None:
    """Compare the zip archive and its pickle with what torch.save writes. Raises for anything else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        _check_end(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if sum(entry.file_size for entry in entries) > size:
                raise _NotPlainError("its entries are larger than the file")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                    raise _NotPlainError(f"the entry {entry.filename!r} is compressed")
                if not _ENTRY.fullmatch(entry.filename):
                    raise _NotPlainError(f"the entry {entry.filename!r} is unknown")
            # torch finds entries whatever their case, and takes the first folder for that of all.
            if len({name.lower() for name in names}) < len(names) or len({name.split("/")[0] for name in names}) != 1:
                raise _NotPlainError("two of its entries have one name, or lie in two folders")
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if not pickles or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise _NotPlainError(f"it has no data.pkl of at most {MAX_PICKLE_BYTES} bytes")
            _check_pickle(archive.read(pickles[0]))


def _check_end(file: IO[bytes], size: int) -> None:
    """The archive's directory has to be where each reader of zip files looks for it: zipfile and torch must not see two
    different archives in one file. Its length bounds what they hold in memory.
    """
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if size < 98 or tail[-22:-18] != b"PK\5\6":
        raise _NotPlainError("it does not end as a zip archive does")
    count, length, start = struct.unpack_from("<HII", tail, 98 - 22 + 10)
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # an archive with 64-bit sizes, which torch always writes
        end = size - 98
        if tail[:4] != b"PK\6\6" or struct.unpack_from("<Q", tail, 56 + 8) != (end,):
            raise _NotPlainError("its zip directory is not at its end")
        count, length, start = struct.unpack_from("<QQQ", tail, 32)
    if start + length != end or count > MAX_ENTRIES or length > 400 * MAX_ENTRIES:
        raise _NotPlainError("its zip directory is not at its end, or too long")
    file.seek(0)
    if file.read(4) != b"PK\3\4":  # torch would read it as one of its older formats
        raise _NotPlainError("it does not begin as a zip archive does")


def _check_pickle(content: bytes) -> None:
    """Walk the pickle without running it, with a note of what lies on its stack: a call is one of the two that plain
    tensors need, and only an OrderedDict (of a state_dict) gets attributes.
    """
    stack: list[str] = []
    marks: list[int] = []  # where in the stack they lie: to search for them could take hours
    memo: dict[int, str] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name not in _OPCODES:
            raise _NotPlainError(f"its pickle holds the instruction {name}")
        if name == "GLOBAL" and argument not in _CALLABLE | _STORAGES:
            raise _NotPlainError(f"its pickle asks for {argument.replace(' ', '.', 1)}")
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        if name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        if name == "MARK":
            marks.append(len(stack))
            continue
        kinds = [item.name for item in opcode.stack_before]
        if "mark" in kinds:  # it takes all down to the last mark, and what its list names before the mark
            del stack[marks.pop() :]
            kinds = kinds[: kinds.index("mark")]
        first = len(stack) - len(kinds)
        if first < (marks[-1] if marks else 0):
            raise _NotPlainError("its pickle takes more than it has")
        if first > MAX_DEPTH:
            raise _NotPlainError("its pickle piles up what it never uses")
        taken = stack[first:]
        del stack[first:]
        if name == "REDUCE" and taken[0] not in _CALLABLE:
            raise _NotPlainError("its pickle calls what is no function")
        if name == "BUILD" and taken[0] != "collections OrderedDict()":
            raise _NotPlainError("its pickle sets attributes of what is no OrderedDict")
        if name in _IN_PLACE:
            stack.append(taken[0])
        elif name == "GLOBAL":
            stack.append(argument)
        elif name == "REDUCE":
            stack.append(f"{taken[0]}()")
        else:
            stack += [item.name for item in opcode.stack_after]


def _check_tensors(content: Any, size: int) -> None:
    """Each tensor has bytes of the file for itself: none is larger than what it shows, and no two are one."""
    spans = []
    for tensor in _tensors(content):
        # Not numel(): nothing here may overflow.
        length = tensor.element_size()
        for extent in tensor.shape:
            length *= extent
        if tensor.layout != torch.strided or length > size or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise _NotPlainError(f"a tensor of shape {tuple(tensor.shape)} is not stored as it is")
        if length:
            spans.append((tensor.data_ptr(), length))
    spans.sort()
    if sum(length for _, length in spans) > size:
        raise _NotPlainError("its tensors are larger than the file")
    for (start, length), (next_start, _) in pairwise(spans):
        if start + length > next_start:
            raise _NotPlainError("two of its tensors share their memory")


def _tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor of nested dicts, lists and tuples; each container once, since a pickle may repeat itself."""
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, dict) else value
