"""Passes of several batches that wait for each other at layers, so that none is begun twice."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import FarEnough, read_by
from prunus._common.as_written import as_written, looked_into
from prunus._common.inputs import Inputs

Seen = tuple[Tensor, Tensor]
"""What a layer reads in a pass, and what it gives as it is now."""
Reach = Callable[[nn.Module], list[Seen | None]]


@contextmanager
def walking(
    model: nn.Module, layers: Sequence[nn.Module], passes: Iterable[Inputs]
) -> Iterator[Reach]:
    """Passes that stand before the first of some layers, and go on when they are asked.

    Inside, ``reach(layer)`` lets every pass come to a layer and gives what it reads and what the
    layer would give, by pass; ``None`` where a pass does not come there. A layer that is changed
    then computes as it has become when the pass goes on. Layers are asked for in the order of a
    pass; those of ``layers`` that were asked for hold nobody up any more. What the passes hold in
    memory is what lives at one layer, for all batches.

    A pass is a thread, of which one at a time runs: nothing depends on how they are scheduled.
    Without gradients; modes are the caller's.

    Args:
        model: that has the layers.
        layers: modules, each of which a pass calls once.
        passes: inputs of the model.

    Raises:
        Exception: what the model raises, at the layer before which it does.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer in model:
    ...     _ = layer.weight.data.fill_(2.0)
    >>> with walking(model, [*model], [((torch.ones(1, 1),), {})]) as reach:
    ...     first = reach(model[0])[0]
    ...     _ = model[0].weight.data.fill_(5.0)
    ...     second = reach(model[1])[0]
    >>> [float(x) for x in (*first, *second)]
    [1.0, 2.0, 5.0, 10.0]
    """
    waiting = set(layers)
    current: dict[int, _Pass] = {}
    walkers = [_Pass(model, inputs, current) for inputs in passes]

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        this = current.get(threading.get_ident())
        if this is None or this.looking or module not in waiting:
            return
        this.stop_if_left()  # code behind a layer runs even then: finally, a bare except
        this.looking = True
        try:
            module(*args, **kwargs)  # as it is now
        finally:
            this.looking = False
        this.wait(module)
        torch.clear_autocast_cache()  # of the weights as they were

    def behind(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        this = current.get(threading.get_ident())
        if this is not None and this.looking:
            this.seen = (read_by(args, kwargs).detach(), output.detach())

    def reach(layer: nn.Module) -> list[Seen | None]:
        found = []
        for walker in walkers:
            while not walker.over and walker.at not in waiting:
                walker.onward()
            found.append(walker.seen if walker.at is layer else None)
        waiting.discard(layer)
        return found

    with ExitStack() as stack:
        stack.enter_context(as_written())
        for layer in layers:
            hooks = (layer.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
                     layer.register_forward_hook(behind, with_kwargs=True))  # fmt: skip
            for hook in hooks:
                stack.callback(hook.remove)
        for walker in walkers:
            stack.callback(walker.leave)
        yield reach


class _Pass(threading.Thread):
    """One pass; it runs while :meth:`onward` waits."""

    def __init__(self, model: nn.Module, inputs: Inputs, current: dict[int, _Pass]) -> None:
        super().__init__(daemon=True)
        self.at: nn.Module | None = None
        self.seen: Seen | None = None
        self.over = self.looking = self._left = False
        self._model, self._inputs, self._current = model, inputs, current
        self._error: BaseException | None = None
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._around, self._context = _thread_local_state(model), contextvars.copy_context()

    def run(self) -> None:
        self._context.run(self._pass)

    def _pass(self) -> None:
        self._current[threading.get_ident()] = self
        try:
            with ExitStack() as stack:
                for state in self._around:
                    stack.enter_context(state)
                stack.enter_context(torch.no_grad())
                stack.enter_context(suppress(FarEnough))
                looked_into(self._model, self._inputs)
        except BaseException as error:  # whatever it is, it is raised where the pass is asked for
            self._error = error
        finally:
            self._current.pop(threading.get_ident(), None)
            self.over, self.at, self.seen = True, None, None
            self._stands.release()

    def wait(self, layer: nn.Module) -> None:
        """In the pass: stand before a layer."""
        self.at = layer
        self._stands.release()
        self._go.acquire()
        self.at = self.seen = None
        self.stop_if_left()

    def stop_if_left(self) -> None:
        """In the pass: go no further once nobody waits for it."""
        if self._left:
            raise FarEnough

    def onward(self) -> None:
        """Let the pass go on until it stands, or is over."""
        self._go.release() if self.ident else self.start()
        self._stands.acquire()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """End the pass where it stands."""
        if self.ident and not self.over:
            self._left = True
            with suppress(BaseException):
                self.onward()
        if self.ident:
            self.join()


def _thread_local_state(model: nn.Module) -> list[Any]:
    """What torch keeps for each thread and a model's answers may depend on, as it is here."""
    default = torch.empty(0).device  # torch 2.6 names what set_default_device said alone
    kinds = sorted({p.device.type for p in model.parameters()})
    found: list[Any] = [nullcontext() if default.type == "cpu" else default]
    if torch.is_inference_mode_enabled():
        found.append(torch.inference_mode())
    if "cuda" in kinds:  # the device too: a new thread has the first one
        found.append(torch.cuda.stream(torch.cuda.current_stream()))
    for kind in kinds:
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            found.append(torch.autocast(kind, dtype=torch.get_autocast_dtype(kind)))
    return found
