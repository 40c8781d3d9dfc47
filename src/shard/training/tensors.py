"""Named tensors to a safetensors file, hashed as it is written: one pass, no copy of what is in memory.

The format (huggingface/safetensors): eight bytes with the length of the header, a JSON header with the type, shape and
place of each tensor, then the bytes. The library's own writer first copies every tensor into a Python object; a
checkpoint that is written beside the training must not take that memory, nor hold the interpreter while it copies.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write `path`, flush it to disk, and return its SHA-256. The same tensors give the same bytes. `metadata` stands
    in the header as it is.
    """
    # Wide types first, so that every tensor is aligned to its own size, as the library does.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(head).to_bytes(8, "little"), head):
            file.write(piece)
            digest.update(piece)
        for _, tensor in ordered:
            # Both calls let other threads run while they work on a large piece.
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(content)
            digest.update(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
