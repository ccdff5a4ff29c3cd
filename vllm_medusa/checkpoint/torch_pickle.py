# SPDX-License-Identifier: Apache-2.0
"""What the pickle of a state dict says, found out without unpickling it.

`torch.load(weights_only=True)` runs no foreign code, but builds whatever its list of
allowed types can build: a few bytes make it allocate gigabytes (bytearray, Tensor) or
exhaust the C stack (nested tuples as keys of a dict). Here the opcodes of a state dict
are followed by hand, no object is made but dicts, lists, tuples and records, and every
other opcode or global is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_medusa.wording import show

MAX_BYTES = 16 << 20
"""Largest pickle; a tensor takes about 150 bytes of it."""

MAX_OPCODES = 1 << 20
"""A tensor takes about 25."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(Exception):
    """The pickle holds something else than a dict of names to tensors."""


@dataclass(frozen=True)
class PickledStorage:
    """A storage: name of its type, key of its record, number of elements."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class PickledTensor:
    """A view of a storage, all in elements; `dtype` names one that overrules it."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _OtherTensor:
    """Sparse, quantised, without data: only the name of what would make it."""

    maker: str


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("its stack runs empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("a mark is missing")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError(f"it adds to something that is no {kind.__name__}")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise PickleError("a key lacks its value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Any other key could take for ever to hash.
            if not isinstance(key, str):
                raise PickleError(
                    f"it holds {_kind(key)}: {_kind(value)}; names of tensors are "
                    "expected"
                )
            target[key] = value

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode.

        Raises:
            PickleError: it belongs to no state dict.
        """
        push = self.stack.append
        if name in _VALUES:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top(object)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise PickleError(f"it refers to {argument}, which it does not have")
            push(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            push(tuple(self.pop_mark()))
        elif name in _TUPLES:
            push(tuple([self.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "SETITEMS":
            self.set_items(self.pop_mark())
        elif name == "SETITEM":
            self.set_items([self.pop(), self.pop()][::-1])
        elif name == "APPENDS":
            items = self.pop_mark()
            self.top(list).extend(items)
        elif name == "APPEND":
            item = self.pop()
            self.top(list).append(item)
        elif name == "GLOBAL":
            push(_Global(argument.replace(" ", ".", 1)))
        elif name == "BINPERSID":
            push(_storage(self.pop()))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            push(_reduced(function, arguments))
        elif name == "BUILD":
            self.pop()  # attributes of an OrderedDict: the versions of its modules
            self.top(dict)
        else:
            raise PickleError(f"opcode {name} is of no state dict")


def read_state_dict(content: bytes) -> dict[str, PickledTensor]:
    """Return the tensors that a pickle of protocol 2 describes, none of them read.

    Raises:
        PickleError: it is damaged, or anything but a dict of names to tensors.
    """
    machine = _Machine()
    stopped = False
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_OPCODES:
                raise PickleError(f"it has more than {MAX_OPCODES} opcodes")
            stopped = opcode.name == "STOP"
            if not stopped and opcode.name != "PROTO":
                machine.step(opcode.name, argument)
    except (ValueError, OverflowError) as error:
        raise PickleError(f"it is damaged: {str(error)[:200]}") from None
    result = machine.pop() if stopped else None
    if not isinstance(result, dict):
        raise PickleError(f"it holds a {_kind(result)}, not a dict of tensors")
    for name, value in result.items():
        if isinstance(value, _OtherTensor):
            raise PickleError(
                f"{show(name)} is made by {show(value.maker)}, a plain (strided) "
                "tensor is expected: save tensor.to_dense().cpu()"
            )
        if not isinstance(value, PickledTensor):
            raise PickleError(
                f"it holds {show(name)}: {_kind(value)}; a dict of names to tensors is "
                "expected"
            )
    return result


def _storage(identity: Any) -> PickledStorage:
    match identity:
        case ("storage", _Global(kind), str(key), str(), int(numel)):
            return PickledStorage(kind.rpartition(".")[2], key, numel)
    raise PickleError("it refers to something outside that is no storage")


def _reduced(function: Any, arguments: Any) -> Any:
    name = function.name if isinstance(function, _Global) else _kind(function)
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor_v2", (
            PickledStorage() as storage,
            int(offset),
            tuple(shape),
            tuple(stride),
            *_,
        ):
            return _tensor(storage, offset, shape, stride, None)
        case "torch._utils._rebuild_tensor_v3", (
            PickledStorage() as storage,
            int(offset),
            tuple(shape),
            tuple(stride),
            _,
            _,
            _Global(dtype),
            *_,
        ):
            return _tensor(storage, offset, shape, stride, dtype)
        case "torch._utils._rebuild_parameter", (PickledTensor() as tensor, *_):
            return tensor
        case (("torch.serialization._get_layout" | "torch.Size" | "torch.device"), _):
            return None
    if name.startswith("torch._utils._rebuild_"):
        return _OtherTensor(name)
    raise PickleError(
        f"it calls {show(name)} and so would run code, which is never done"
    )


def _tensor(
    storage: PickledStorage,
    offset: int,
    shape: tuple[Any, ...],
    stride: tuple[Any, ...],
    dtype: str | None,
) -> PickledTensor:
    numbers = (offset, storage.numel, *shape, *stride)
    if len(shape) != len(stride) or len(shape) > 8:
        raise PickleError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise PickleError(
            f"a tensor has shape {show(shape)}, strides {show(stride)} and offset "
            f"{show(offset)}"
        )
    return PickledTensor(storage, offset, shape, stride, dtype)


def _kind(value: object) -> str:
    """What a value is, for messages; never its whole content."""
    if isinstance(value, int | float | None):
        return show(value)
    if isinstance(value, _Global):
        return show(value.name)
    return "Tensor" if isinstance(value, PickledTensor) else type(value).__name__
