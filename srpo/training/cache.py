"""A bounded cache of tensors: what is costly to make and needed again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class TensorCache:
    """Remembers tensors up to a number of bytes; what was used longest ago goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that key, made where it is not remembered. It stays whatever its size until the next one."""
        with self._lock:
            if key in self._tensors:
                self._tensors.move_to_end(key)
                return self._tensors[key]
        tensor = make()
        with self._lock:
            self._tensors[key] = tensor
            while len(self._tensors) > 1 and self.nbytes > self.max_bytes:
                self._tensors.popitem(last=False)
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())
