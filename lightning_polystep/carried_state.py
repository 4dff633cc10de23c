"""Hidden state that a network carries from batch to batch outside of its state dict: membranes, for example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_polystep.host import rank_zero_warn

_LARGEST_BYTES = 16 * 2**20
# Tables of nn.Module itself.
_NO_STATE = frozenset(vars(nn.Module()))

TOO_LARGE = (
    "{} carries {:.0f} MiB from batch to batch outside of the state dict, which checkpoints leave out, so a resumed "
    "run starts without it: register it as a persistent buffer, or reset it at every batch."
)
UNKNOWN_STATE = (
    "The checkpoint holds the hidden state {}, and the module has no such part: the resumed run goes on without it."
)


class CarriedState:
    """What a fit has changed of the state that no state dict holds.

    That is buffers that are not persistent, and attributes of modules that are tensors, or tuples or dicts with them.
    What is as it was when the fit began is left out: masks and tables that the constructor makes. So are metrics, whose
    averages begin anew, and lists, which rather keep a history than a state.

    Args:
        module: The module, at the start of a fit.

    Example:
        >>> cell = nn.Module()
        >>> cell.register_buffer("membrane", torch.zeros(2), persistent=False)
        >>> state = CarriedState(cell)
        >>> cell.membrane = torch.ones(2)
        >>> state.changed()
        {'membrane': tensor([1., 1.])}
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = {name: _copied(value) for name, value in _state(module)}
        self._warned = False

    def changed(self) -> dict[str, Any]:
        """Return copies of what has changed, by name; nothing but tensors, numbers, strings, tuples and dicts."""
        now = dict(_state(self._module))
        found: dict[str, Any] = {name: None for name in self._before if name not in now}
        for name, value in now.items():
            size = _bytes(value)
            if name in self._before and _equal(self._before[name], value):
                continue
            if size <= _LARGEST_BYTES:
                found[name] = _copied(value)
            elif not self._warned:
                self._warned = True
                rank_zero_warn(TOO_LARGE.format(name, size / 2**20))
        return found


def restore(module: nn.Module, carried: Mapping[str, Any]) -> None:
    """Put carried state back.

    Args:
        module: The module.
        carried: What :meth:`CarriedState.changed` returned.
    """
    parts = dict(module.named_modules())
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    for name, value in carried.items():
        path, _, attribute = name.rpartition(".")
        part = parts.get(path)
        if part is None:
            rank_zero_warn(UNKNOWN_STATE.format(name))
            continue
        table: dict[str, Any] = part._buffers if attribute in part._buffers else part.__dict__
        restored, known = _moved(value, device), table.get(attribute)
        if isinstance(known, dict) and isinstance(restored, dict):
            known.clear()  # others may hold on to it
            known.update(restored)
        else:
            table[attribute] = restored


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, part in module.named_modules():
        if isinstance(part, Metric):
            continue
        prefix = f"{path}." if path else ""
        for name in part._non_persistent_buffers_set:
            if part._buffers.get(name) is not None:
                yield prefix + name, part._buffers[name]
        for name, value in vars(part).items():
            if name not in _NO_STATE and _holds_tensors(value):
                yield prefix + name, value


def _holds_tensors(value: Any) -> bool:
    """Tell whether a value is a tensor, or a tuple or dict of plain values with one among them."""
    if isinstance(value, Tensor):
        return type(value) is Tensor and not value.is_sparse
    parts = _parts(value)
    return any(map(_holds_tensors, parts)) and all(_holds_tensors(part) or _is_plain(part) for part in parts)


def _parts(value: Any) -> list[Any]:
    if type(value) is dict and all(isinstance(key, str | int) for key in value):
        return list(value.values())
    return list(value) if type(value) is tuple else []


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in {bool, int, float, str}


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: _mapped(part, change) for key, part in value.items()}
    return tuple(_mapped(part, change) for part in value) if type(value) is tuple else value


def _copied(value: Any) -> Any:
    # A large one is not copied, so it counts as changed when it is another tensor than before.
    return _mapped(value, lambda t: t.detach().clone() if _bytes(t) <= _LARGEST_BYTES else t)


def _moved(value: Any, device: torch.device) -> Any:
    return _mapped(value, lambda t: t.to(device, copy=True))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, _parts(value)))


def _equal(before: Any, now: Any) -> bool:
    if isinstance(before, Tensor) or isinstance(now, Tensor):
        alike = isinstance(before, Tensor) and isinstance(now, Tensor) and before.shape == now.shape
        return before is now or (alike and before.dtype == now.dtype and torch.equal(before, now.to(before.device)))
    one, other = _parts(before), _parts(now)
    if not one and not other:
        return bool(before == now)
    return type(before) is type(now) and len(one) == len(other) and all(map(_equal, one, other))
