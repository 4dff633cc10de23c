"""Draw what the hard layers of a model do on the first batch of a validation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.callbacks.drawing import Drawing
from lightning_polystep.functional.neurons import LIFOutput
from lightning_polystep.host import pl
from lightning_polystep.layers import ArgmaxAttention, HardMoE, SlotArgmaxAttention
from lightning_polystep.layers.lif import SpikingNeuron
from lightning_polystep.layers.step_function import StepFunction
from lightning_polystep.pictures import layers as pictures


class LayerPictures(Drawing):
    """Draw spike rasters, rates and membranes, expert loads, attention choices, and which outcomes flip.

    Looks at the first batch of a validation, whose order has to stay the same for flips to mean something, as it does
    unless the loader shuffles. Files: ``spikes.png`` (the first sample), ``rates.png``, ``membranes.png``,
    ``experts.png``, ``slots.png``, ``attention.png`` and ``flips.png``, each where there are such layers. Training, and
    candidates, are not looked at.

    In YAML::

        trainer:
          callbacks:
            - class_path: lightning_polystep.callbacks.LayerPictures

    Args:
        every_n_epochs: Draw after every so many epochs of training.
        membranes: Neurons of a layer whose membranes are drawn.
        names: Layers to draw, by their names in the LightningModule; all by default, at most the first nine.

    Raises:
        ValueError: If ``every_n_epochs`` or ``membranes`` is below 1.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_polystep.callbacks import LayerPictures
        >>> trainer = pl.Trainer(callbacks=[LayerPictures()], accelerator="cpu", logger=False)
    """

    def __init__(self, every_n_epochs: int = 1, membranes: int = 4, names: list[str] | None = None) -> None:
        super().__init__(every_n_epochs)
        if membranes < 1:
            raise ValueError(f"LayerPictures: membranes must be at least 1, got {membranes}.")
        self.membranes = membranes
        self.names = names
        self._hooks = ExitStack()
        self._calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {}
        self._layers: dict[str, nn.Module] = {}
        self._last: dict[str, Tensor] = {}
        self._steps: list[int] = []
        self._shares: dict[str, list[float]] = {}

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the hooks before the first batch."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        found = {name: part for name, part in pl_module.named_modules() if isinstance(part, _DRAWN)}
        chosen = self.names if self.names is not None else list(found)[:_MOST]
        unknown = [name for name in chosen if name not in found]
        if unknown:
            self.tell_once(f"the model has no hard layer {unknown[0]!r}; it has {', '.join(found) or 'none'}.")
        self._layers = {name: found[name] for name in chosen if name in found}
        if not found:
            self.tell_once("the model has no hard layer of this package, so there is nothing to draw.")
        if self.names is None and len(found) > _MOST:
            self.tell_once(f"draws the first {_MOST} of {len(found)} hard layers; name others with names=[...].")
        self._calls = {name: [] for name in self._layers}
        for name, layer in self._layers.items():
            self._hooks.callback(layer.register_forward_hook(self._keeper(name), with_kwargs=True).remove)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Remove the hooks behind the first batch, and draw."""
        self._hooks.close()
        if not any(self._calls.values()):
            return
        with torch.no_grad():
            self._compare(trainer.global_step)
            if self.due(trainer):
                try:
                    self._draw(trainer)
                except ModuleNotFoundError as error:
                    self.tell_once(f'no pictures, because {error}: pip install "lightning-polystep[pictures]".')
        self._calls = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the hooks: a run that was interrupted may go on."""
        self._hooks.close()

    def _keeper(self, name: str) -> Callable[..., None]:
        return lambda _layer, inputs, named, output: self._calls[name].append((inputs, named, output))

    def _draw(self, trainer: pl.Trainer) -> None:
        self._draw_spikes(trainer)
        experts = {name: _routed(calls) for name, calls in self._of(HardMoE, self._seen_by_routers())}
        slots = {name: _slots(self._layers[name], calls) for name, calls in self._of(SlotArgmaxAttention)}
        choices = {name: _choices(self._layers[name], calls) for name, calls in self._of(ArgmaxAttention)}
        for name, found, figure in (
            ("experts", experts, lambda: pictures.loads(experts, "expert")),
            ("slots", slots, lambda: pictures.loads(slots, "slot")),
            ("attention", choices, lambda: pictures.attention_choices(choices)),
            ("flips", self._steps, lambda: pictures.flips(self._steps, self._shares)),
        ):
            if found:
                self.show(trainer, name, figure())

    def _draw_spikes(self, trainer: pl.Trainer) -> None:
        trains = {name: torch.cat([_spikes(out) for *_, out in calls], 1) for name, calls in self._of(SpikingNeuron)}
        if not trains:
            return
        self.show(trainer, "spikes", pictures.spike_raster({name: train[:, 0] for name, train in trains.items()}))
        rates = {name: train.float().mean((0, 1)) for name, train in trains.items()}
        self.show(trainer, "rates", pictures.spike_rates(rates))
        few, levels = {}, {}
        for name in trains:
            layer: Any = self._layers[name]
            inputs, named, _ = self._calls[name][0]
            traced = copy(layer)  # the same tensors
            traced.return_membrane = True
            membrane = traced.forward(*inputs, **named).membrane[:, 0].flatten(1)
            few[name] = membrane[:, : self.membranes]
            levels[name] = layer.threshold.detach().expand(trains[name].shape[2:]).flatten()[: self.membranes]
        self.show(trainer, "membranes", pictures.membrane_traces(few, levels))

    def _of(self, kind: type[nn.Module], calls: Any = None) -> list[tuple[str, Any]]:
        return [
            (name, made)
            for name, made in (self._calls if calls is None else calls).items()
            if made and isinstance(self._layers[name], kind)
        ]

    def _seen_by_routers(self) -> dict[str, list[Tensor]]:
        """Return the scores that routers give what their mixtures were called with."""
        return {
            name: [layer.router(inputs[0]) for inputs, _, _ in self._calls[name]]
            for name, layer in self._layers.items()
            if isinstance(layer, HardMoE)
        }

    def _compare(self, step: int) -> None:
        """Note which share of each layer's outcomes is another one than at the last validation."""
        outcomes = {
            name: torch.cat([_spikes(out).flatten() for *_, out in calls])
            for name, calls in self._calls.items()
            if calls and isinstance(self._layers[name], SpikingNeuron | StepFunction)
        }
        known = [name for name in outcomes if name in self._last and self._last[name].shape == outcomes[name].shape]
        if known and len(known) == len(outcomes):
            self._steps.append(step)
            for name in known:
                flipped = (outcomes[name] != self._last[name]).float().mean()
                self._shares.setdefault(name, []).append(float(flipped))
        self._last = outcomes


_DRAWN = (SpikingNeuron, StepFunction, HardMoE, ArgmaxAttention, SlotArgmaxAttention)
_MOST = 9


def _spikes(output: Any) -> Tensor:
    spikes: Tensor = output.spikes if isinstance(output, LIFOutput) else output
    return spikes.detach()


def _routed(scores: list[Tensor]) -> Tensor:
    experts = scores[0].shape[-1]
    return torch.cat([torch.bincount(each.argmax(-1).flatten(), minlength=experts)[None] for each in scores]).sum(0)


def _slots(layer: Any, calls: list[Any]) -> Tensor:
    asked = copy(layer)
    asked.return_indices = True
    taken = torch.cat([asked.forward(*inputs, **named).indices.flatten() for inputs, named, _ in calls])
    return torch.bincount(taken, minlength=len(layer.keys))


def _choices(layer: Any, calls: list[Any]) -> Tensor:
    """Return the share of samples and heads in which a query takes a key, ``(queries, keys)``."""
    asked = copy(layer)
    asked.return_indices = True
    inputs, named, _ = calls[0]
    indices = asked.forward(*inputs, **named).indices
    key = inputs[1] if len(inputs) > 1 and inputs[1] is not None else named.get("key", inputs[0])
    keys, queries = key.shape[-2], indices.shape[-1]
    taken = indices.reshape(-1, queries, 1) == torch.arange(keys, device=indices.device)
    return taken.float().mean(0)
