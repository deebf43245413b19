"""Makes a recording out of probes: arms one probe at a time, keeps a few batches, reads them once more at the end."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.kept import KEPT_BYTES, Kept, Stretch, own
from relume.nested import as_input, extent, first_float
from relume.pace import clock
from relume.probe import Probe, initial_weights
from relume.proof import prove_runs, silent_units
from relume.ranks import alone, ranks_of
from relume.recording import Floats, Proof, Reading, Recording, Site
from relume.sites import undisturbed
from relume.standstill import Standstill
from relume.symptoms import CLOSED_SAMPLES, CLOSED_SITE, ENOUGH_SAMPLES, FEWEST_READINGS
from relume.targets import TargetFinder

PENDING_LOSSES = 256  # kept on the device before they are moved together
UNSEEN_STEPS = 3  # without one reading: the loop calls something else
MOST_READINGS = 512  # in memory: past that every second one of the older half goes
TOLD = 60  # steps after its last unit has died, at most, a dead layer is told
MOST_ASKED = 8  # times that a layer which stands still is read out of turn: one may come and go


class Recorder:
    """Collects the readings of one run of `model`; the model and the random generators stay as they are.

    `arm()` reads the next training forward pass, `collect(loss)` takes the reading after the optimizer's step,
    `recording()` gives all so far, closed by a reading of the kept batches with the weights as they are now.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        *,
        trained: bool = True,
        resumed: bool = False,
    ) -> None:
        self.losses = array("d")
        self.readings: list[Reading] = []
        self.kept = Kept()  # for the closing reading, for proofs and for the targets of replays
        self.following: Stretch | None = None  # from some later step on
        self.followed = 0  # steps whose batches were kept so
        self.window: list[tuple[tuple[Any, Any], ...]] | None = None  # of the latest steps, while they are collected
        self.summed = False  # the gradients of a step's passes, where there are several, and not averaged
        self.note = ""
        self.began: float | None = None  # by `pace.clock`, the forward pass of the latest step that was armed
        self.sites: dict[str, Site] = {}
        self.blind: dict[str, None] = {}
        self._called = model  # whose passes are read
        self._model = alone(model)  # where calls can be seen, also in a pass of our own
        self._compiled = hasattr(model, "_orig_mod")
        self._kind = type(getattr(model, "_orig_mod", model)).__name__
        self.initial = initial_weights(self._model, optimizer)
        self._error: Exception | None = None
        self._scripted = isinstance(self._model, torch.jit.ScriptModule)
        self._optimizer = optimizer
        self.opening = Stretch(0, self._rates, KEPT_BYTES)  # the first steps; given the loss function
        self._trained = trained
        self._resumed = resumed or (optimizer is not None and bool(optimizer.state))
        self._started = time.perf_counter()
        self.pending: list[Tensor | float | None] = []  # the losses of steps that were counted since
        self.direct = False  # what is to be appended to them is `loss.item()`
        self._probe: Probe | None = None
        self._finder = TargetFinder(loss) if loss is not None else None
        self._inputs: list[Any] = []  # of each pass of the step, while targets are wanted
        self._hooks: list[Any] = []
        self.ranks = ranks_of(model) if trained else None
        self._closed: tuple[int, list[Reading]] | None = None
        self._proven: tuple[int, tuple[Proof, ...], int | None] | None = None  # as of a step, from so many samples
        self._keeper: Any = None  # the hook that keeps inputs
        self._standstill = Standstill(self._model, optimizer) if optimizer is not None and trained else None
        self._pulled: dict[str, Floats] = {}  # by site, how many values of each unit had a gradient when last counted
        self._read_still: set[str] = set()  # sites of which all units stood still when they were read
        self._asked: Counter[str] = Counter()  # how often that was so

    # around one step ----------------------------------------------------------------------------------------------

    @property
    def wants_targets(self) -> bool:
        """Whether the next step's target is to be found, so that `arm` is called before it."""
        return self._finder is not None and (self.window is not None or self._stretch is not None)

    @property
    def first(self) -> list[tuple[Any, Any]]:
        """(input, target) of the first steps."""
        return self.opening.pairs

    @property
    def _stretch(self) -> Stretch | None:
        """What the batch of the next step is to be added to."""
        return next((s for s in (self.following, self.opening) if s is not None and s.wants(self.step)), None)

    def follow(self, room: int) -> Stretch:
        """Keep the batches from the next step on, within so many bytes, instead of those of an earlier step."""
        self.following = Stretch(self.step, self._rates, room)
        return self.following

    @property
    def _rates(self) -> list[float]:
        return [float(group.get("lr", 0.0)) for group in self._optimizer.param_groups] if self._optimizer else []

    def keep_inputs(self) -> None:
        """Keep what goes into the network from now on, until there is enough for a verdict on each unit."""
        wanted = ENOUGH_SAMPLES

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal wanted
            if torch.is_grad_enabled() and module.training and (samples := self.kept.add(args, kwargs)):
                wanted -= samples
                if wanted <= 0 or self.kept.full:
                    self._keep_no_more()

        self._keep_no_more()
        if not self._scripted:
            hook = _Hook(self._guarded(begin))
            self._keeper = self._called.register_forward_pre_hook(hook, with_kwargs=True)

    def _keep_no_more(self) -> None:
        if self._keeper is not None:
            self._keeper.remove()
            self._keeper = None

    def stop(self) -> None:
        """Take off all there is."""
        self.disarm()
        self._keep_no_more()

    def arm(self, *, read: bool = True) -> None:
        """Read (or, without `read`, only keep the input of) the next training pass; nothing is left on afterwards."""
        self.disarm()
        self.began = None
        if self._scripted:
            self.blind["the model is TorchScript, which takes no hooks: its activation calls cannot be seen"] = None
            return
        armed: list[Probe | None] = []

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._finder is not None:
                self._finder.pause()  # also for an evaluation, whose loss is not the step's
            if not torch.is_grad_enabled() or not module.training or not extent((args, kwargs))[0]:
                return
            if self._finder is not None and self.wants_targets:
                if self._inputs and (self.window is None or extent(self._inputs)[1] > KEPT_BYTES):
                    self._finder.forget()  # more passes without a step than replays, or memory, have a use for
                    self._inputs = [None]
                else:
                    self._inputs.append(as_input(self._model, *own((args, kwargs))))
            if armed:
                return
            self.began = clock()
            if self._keeper is None:
                self.kept.add(args, kwargs)
            still = self._standstill.stopped if self._standstill is not None else ()
            armed.append(Probe(self._model, self.step, still) if read else None)
            if (probe := armed[0]) is not None:
                probe.keep_weights()
                probe.read_input((args, tuple(kwargs.values())))
                if self._compiled:
                    self._read_forward(probe, args, kwargs)
                    self._probe = probe
                else:
                    probe.trace.__enter__()

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if armed and armed[0] is not None and self._probe is None:
                self._probe = armed[0]
                self._probe.trace.__exit__(None, None, None)
                self._probe.read_output(output)
            trains = torch.is_grad_enabled() and module.training  # and not an evaluation within the step
            told = all(input is not None for input in self._inputs)
            if armed and trains and told and self._finder is not None and self.wants_targets:
                self._finder.begin(output, gradients=self.window is not None)

        self._hooks = [
            self._called.register_forward_pre_hook(_Hook(self._guarded(begin)), with_kwargs=True),
            self._called.register_forward_hook(_Hook(self._guarded(end)), with_kwargs=True, always_call=True),
        ]

    def _guarded(self, act: Callable[..., None]) -> Callable[..., None]:
        """An error of ours must not come up in the user's forward pass; `collect` raises it."""

        def guarded(*args: Any) -> None:
            if self._error is None:
                try:
                    act(*args)
                except Exception as error:
                    self._error = error

        return guarded

    def disarm(self) -> None:
        """Take off whatever `arm` put on."""
        while self._hooks:
            self._hooks.pop().remove()
        self._probe = None
        self._inputs = []
        if self._finder is not None:
            self._finder.forget()

    @property
    def step(self) -> int:
        """Optimizer steps that were counted."""
        return len(self.losses) + len(self.pending)

    def count(self, loss: Tensor | float | None = None) -> None:
        """Count one optimizer step."""
        if isinstance(loss, Tensor):
            # On the CPU, to read a number takes less than to detach it; elsewhere they are moved later, many at once.
            self.direct = loss.is_cpu and loss.numel() == 1
            loss = loss.item() if self.direct else loss.detach()
        self.pending.append(loss)
        if len(self.pending) >= PENDING_LOSSES:
            self.flush()

    def collect(self, loss: Tensor | float | None = None) -> Reading | None:
        """Count one optimizer step; the reading of it, if it was probed."""
        probe, reading = self._probe, None
        found = self._finder.end(loss) if self._hooks and self._finder is not None else None
        if found is not None and len(found.passes) == len(self._inputs) and all(x is not None for x in self._inputs):
            pairs = tuple(zip(self._inputs, own(found.passes), strict=True))
            if (stretch := self._stretch) is not None and len(pairs) == 1:
                stretch.add(*pairs[0])
                self.followed += stretch is self.following
            if self.window is not None and _is_finite(loss):
                self.window.append(pairs)
                self.summed = found.summed
        self.count(loss)
        if probe is not None and self._error is None and probe.trace.error is None:
            reading = probe.reading(loss, self._optimizer)
            self._add(probe, reading)
            self._merge(len(self.readings) - 1)
            if len(self.readings) > MOST_READINGS:
                del self.readings[FEWEST_READINGS : MOST_READINGS // 2 : 2]
        self.disarm()
        if (error := self._error or (probe.trace.error if probe is not None else None)) is not None:
            raise error
        return reading

    @property
    def lost(self) -> bool:
        """Whether the newest loss is known, and not finite."""
        newest = self.pending[-1] if self.pending else None
        return isinstance(newest, float) and not math.isfinite(newest)

    @property
    def look_steps(self) -> int:
        """Steps to the next look, so that a dead layer is told within `TOLD` of them."""
        batch = next((r.input.samples for r in reversed(self.readings) if r.input is not None), 1)
        return max(TOLD // 2 - 2, TOLD - 2 - math.ceil(CLOSED_SAMPLES / max(1, batch)) - 4)

    def look(self) -> bool:
        """See which units stand still; whether all of a layer do since it was read, so that the next step should be.

        Where one batch has many samples, no gradient in one step is enough to look closer; else, none between looks.
        """
        standstill = self._standstill
        if standstill is None or not standstill.look(self.step):
            self._read_still.clear()
            return False
        units = standstill.stopped if self.look_steps > TOLD // 2 else standstill.idle
        still = {name for name, idle in units.items() if (idle > 0).mean() >= CLOSED_SITE}
        self._read_still &= still  # what moves again is news when it stops again
        return any(self._asked[name] < MOST_ASKED for name in still - self._read_still)

    def _add(self, probe: Probe, reading: Reading) -> None:
        for site in probe.sites:
            self.sites.setdefault(site.name, site)
        self.blind.update(dict.fromkeys(probe.blind))
        self.readings.append(self._with_standstill(probe, reading))

    def _merge(self, start: int) -> None:
        """Put the readings from that one on together with those of the other ranks."""
        if self.ranks is not None:
            merged = self.ranks.merged(self.readings[start:])
            if merged is None:
                self.blind["the ranks did not run the same activations: this is what one of them saw"] = None
            else:
                self.readings[start:] = merged

    def _with_standstill(self, probe: Probe, reading: Reading) -> Reading:
        """The reading, and how long the units of each site have had no gradient by now."""
        standstill = self._standstill
        if standstill is None:
            return reading
        standstill.follow(probe.sites)
        standstill.look(self.step)
        self._pulled.update(probe.pulled)
        sites = dict(reading.sites)
        for name, stopped in standstill.stopped.items():
            if stopped.mean() >= CLOSED_SITE and name in sites:
                self._read_still.add(name)
                self._asked[name] += 1
        for name, idle in standstill.idle.items():
            if name in sites and len(idle) == len(sites[name].silent):
                values = idle * standstill.resolved(name) * self._pulled.get(name, 0.0)
                sites[name] = replace(sites[name], idle=idle.astype(np.float32), idle_samples=values.astype(np.float32))
        for name, read in sites.items():
            moved = standstill.moved(name)
            if moved is not None and len(moved) == len(read.silent) and read.silent.any():
                sites[name] = replace(read, moved=moved.astype(np.float32))
        return replace(reading, sites=sites)

    def flush(self) -> None:
        """Move the losses since the last time to the CPU."""
        tensors = [
            loss if loss.dim() == 0 else loss.float().mean() for loss in self.pending if isinstance(loss, Tensor)
        ]
        values = iter(torch.stack(tensors).tolist() if tensors else ())
        self.losses.extend(
            next(values) if isinstance(loss, Tensor) else math.nan if loss is None else float(loss)
            for loss in self.pending
        )
        self.pending.clear()

    # without a step -----------------------------------------------------------------------------------------------

    def read_batch(self, run: Callable[[], Any], inputs: Any, loss: Callable[[Any], Tensor] | None) -> int:
        """Read one pass forward and back without training, and return its samples; `run` calls the model.

        `loss` takes the output; without it the gradients are those of a random direction of the output.
        """
        probe = Probe(self._model, self.step)
        with undisturbed(self._model), torch.enable_grad():
            torch.manual_seed(0)
            probe.read_input(inputs)
            with probe.trace:
                output = run()
            probe.read_output(output)
            value = loss(output) if loss is not None else _random_direction(output)
            if value.requires_grad:
                _backward(value, [p for p in self._model.parameters() if p.requires_grad])
            if probe.trace.error is not None:
                raise probe.trace.error
            self._add(probe, probe.reading(value if loss is not None else None))
        return max(1, extent(inputs)[0])

    def read_kept(self) -> None:
        """Read one forward pass of each kept batch, in the model's present mode."""
        for args, kwargs in self.kept.batches:
            probe = Probe(self._model, self.step)
            probe.read_input((args, tuple(kwargs.values())))
            self._read_forward(probe, args, kwargs)
            self._add(probe, probe.reading())

    def _closing(self) -> list[Reading]:
        """A reading of each kept batch with the weights as they are now; none where the model does not run on them."""
        if self._closed is None or self._closed[0] != self.step:
            before = len(self.readings)
            try:
                self.read_kept()
            except Exception as error:  # the user's model may fail here as it did in the user's loop
                words = f"{type(error).__name__}: {error}"
                self.blind[f"the last weights could not be read on the batches that were kept ({words})"] = None
            self._merge(before)
            self._closed = self.step, self.readings[before:]
            del self.readings[before:]
        return self._closed[1]

    def close(self) -> None:
        """With the other ranks, read the kept batches now; a report that is asked of one rank can then use it."""
        self.flush()
        if self.ranks is not None and self.losses and self._called.training:
            (count,) = self.ranks.agreed(len(self.kept.batches))
            self.kept.trim(count)
            self._closing()
            self.ranks.leave()

    def _prove(self, readings: Iterable[Reading]) -> tuple[tuple[Proof, ...], int | None]:
        """Proofs for the units silent in these readings, on the kept batches, and how many samples of those differ."""
        if self._proven is None or self._proven[0] != self.step:
            runs = [partial(self._model, *args, **kwargs) for args, kwargs in self.kept.batches]
            proofs: tuple[Proof, ...] = ()
            distinct = None
            try:
                distinct = self.kept.distinct()
                proofs = prove_runs(self._model, runs, silent_units(readings))
            except Exception as error:  # a proof is an extra: no report may fail for want of one
                self.blind[f"nothing could be proven of the silent units ({type(error).__name__}: {error})"] = None
            self._proven = self.step, proofs, distinct
        return self._proven[1:]

    def _read_forward(self, probe: Probe, args: Any, kwargs: Any) -> None:
        """A pass of the probe's own, forward only, which changes nothing."""
        with undisturbed(self._model), torch.no_grad():
            with probe.trace:
                output = self._model(*args, **kwargs)
            probe.read_output(output)
        if probe.trace.error is not None:
            raise probe.trace.error

    def recording(self, *, finished: bool = True, closing: bool = True, proofs: bool = False) -> Recording:
        """All that was read so far; `closing` reads the kept batches once more with the weights as they are now.

        `proofs` says whether to prove what can be proven of the units that are silent in those readings; without
        `closing`, of those silent in all.
        """
        self.flush()
        before = len(self.readings)
        if self.ranks is not None and (self._closed is None or self._closed[0] != self.step):
            closing = False  # it takes all ranks, and a report may be asked of one
        if closing and self.kept.batches and self.losses and math.isfinite(self.losses[-1]):
            self.readings += self._closing()
        last = self.readings[before:] if closing else self.readings
        proven, distinct = self._prove(last) if proofs and last and self.kept.batches else ((), None)
        if self._trained and self.step >= UNSEEN_STEPS and not before and not self._scripted:
            self.blind[
                f"no training pass went through this {self._kind} in {self.step} steps: "
                "watch the very module that the loop calls (with torch.compile, what it returned), in training mode"
            ] = None
        readings = tuple(self.readings)
        del self.readings[before:]
        return Recording(
            model=self._kind,
            optimizer=type(self._optimizer).__name__ if self._optimizer else "",
            sites=tuple(sorted(self.sites.values(), key=lambda site: site.order)),
            readings=readings,
            losses=tuple(self.losses),
            initial=self.initial,
            blind=(*self.blind, *(self._standstill.blind if self._standstill is not None else ())),
            steps=self.step,
            trained=self._trained,
            resumed=self._resumed,
            finished=finished,
            note=self.note,
            seconds=time.perf_counter() - self._started,
            proofs=proven,
            distinct_samples=distinct,
        )


class _Hook:
    """A hook that does nothing in a copy of the model, whether made by deepcopy or by pickle."""

    def __init__(self, act: Callable[..., None] | None = None) -> None:
        self._act = act

    def __call__(self, *args: Any) -> None:
        if self._act is not None:
            self._act(*args)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _is_finite(loss: Any) -> bool:
    return bool(torch.isfinite(loss).all()) if isinstance(loss, Tensor) else loss is None or math.isfinite(loss)


def _backward(value: Tensor, parameters: list[Tensor]) -> None:
    """Give each parameter the gradient of this value alone."""
    for p in parameters:
        p.grad = None  # `undisturbed` puts back what was there
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        # an optimizer that steps in backward must not step now; reentrant checkpointing cannot do it this way
        for p, g in zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            p.grad = g
    else:
        value.backward()


def _random_direction(output: Any) -> Tensor:
    tensor = first_float(output)
    return torch.zeros(()) if tensor is None else (tensor * torch.randn_like(tensor)).sum()
