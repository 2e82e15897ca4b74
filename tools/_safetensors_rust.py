"""The module of safetensors that is compiled from Rust, in Python: for test_pyodide.sh, which has no such compiler.

It has what `safetensors` and `safetensors.numpy` import, and refuses the files that the original refuses.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from dataclasses import dataclass

import numpy as np

__version__ = "0.8.0"
MAX_HEADER = 100_000_000
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bool": "BOOL",
    "complex64": "C64",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
NAMES = {short: name for name, short in DTYPES.items()}


class SafetensorError(Exception):
    pass


@dataclass
class TensorSpec:
    dtype: str
    shape: tuple[int, ...]
    data_ptr: int
    data_len: int


def serialize(tensors, metadata=None):
    header, pieces, end = {}, [], 0
    if metadata is not None:
        header["__metadata__"] = metadata
    # The largest elements come first, so that all are aligned.
    for name in sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name)):
        spec = tensors[name]
        begin, end = end, end + spec.data_len
        header[name] = {"dtype": DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
        pieces.append(ctypes.string_at(spec.data_ptr, spec.data_len))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces])


def serialize_file(tensors, filename, metadata=None):
    with open(filename, "wb") as file:
        file.write(serialize(tensors, metadata))


def no_repetition(pairs):
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"duplicate key in {keys}")
    return dict(pairs)


def count(value):
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"not a size: {value}")
    return value


def parse(content):
    """The entries of a file, its metadata, and where its data begins."""
    if len(content) < 8:
        raise SafetensorError("Error while deserializing header: header too small")
    size = int.from_bytes(content[:8], "little")
    if size > MAX_HEADER:
        raise SafetensorError("Error while deserializing header: header too large")
    if size + 8 > len(content):
        raise SafetensorError("Error while deserializing header: invalid header length")
    try:
        text = content[8 : 8 + size].decode()
        if not text.startswith("{"):
            raise ValueError("it must begin with {")
        header = json.loads(text, object_pairs_hook=no_repetition)
        metadata = header.pop("__metadata__", None)
        if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata must be strings")
        entries = {}
        for name, entry in header.items():
            if entry.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(entry["dtype"], str):
                raise ValueError(f"not a tensor: {name}")
            shape, (begin, end) = [count(n) for n in entry["shape"]], map(count, entry["data_offsets"])
            entries[name] = (entry["dtype"], shape, begin, end)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SafetensorError(f"Error while deserializing header: invalid JSON in header: {error}") from None
    position = 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        itemsize = np.dtype(NAMES[dtype]).itemsize if dtype in NAMES else None
        if begin != position or end < begin:
            raise SafetensorError(f"Error while deserializing header: invalid offset for tensor `{name}`")
        if itemsize is not None and math.prod(shape) * itemsize != end - begin:
            raise SafetensorError("Error while deserializing header: info contains invalid shape, dtype or offset")
        position = end
    if position != len(content) - 8 - size:
        raise SafetensorError("Error while deserializing header: incomplete metadata, file not fully covered")
    return entries, metadata, 8 + size


def deserialize(content):
    entries, _, start = parse(content)
    return [
        (name, {"dtype": dtype, "shape": shape, "data": content[start + begin : start + end]})
        for name, (dtype, shape, begin, end) in entries.items()
    ]


class safe_open:  # noqa: N801
    def __init__(self, filename, framework, device=None, backend="mmap"):
        with open(os.fspath(filename), "rb") as file:
            self.content = file.read()
        self.entries, self.texts, self.start = parse(self.content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def keys(self):
        return sorted(self.entries)

    def offset_keys(self):
        return sorted(self.entries, key=lambda name: self.entries[name][2])

    def metadata(self):
        return self.texts

    def get_tensor(self, name):
        if name not in self.entries:
            raise SafetensorError(f"File does not contain tensor {name}")
        dtype, shape, begin, end = self.entries[name]
        data = bytearray(self.content[self.start + begin : self.start + end])
        return np.frombuffer(data, np.dtype(NAMES[dtype]).newbyteorder("<")).reshape(shape)

    def get_tensors(self):
        return {name: self.get_tensor(name) for name in self.keys()}


_safe_open_handle = safe_open
