"""What a watch has read: sites, readings, and the recording that holds them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
T = TypeVar("T")

# Values that differ by less, relative to their size, are one constant: averages of equal numbers round (float32).
ONE_CONSTANT = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a model applies an activation; a shared `nn.ReLU` called three times is three sites."""

    name: str  # module path, or the caller's path and the function: "block.act", "block.relu", "block.relu#2"
    activation: str  # the catalogue's name
    parameters: Mapping[str, float] = field(default_factory=dict)  # of the function, such as negative_slope
    units: int
    axis: int  # where the units are in the tensor, counted from the end: -1 Linear, -3 for images
    order: int  # position among the sites of one forward pass, from 0
    layers: tuple[str, ...] = ()  # modules with parameters that lead to it, the nearest first
    weight: str = ""  # parameter whose rows are this site's units, such as "fc2.weight"
    bias: str = ""
    normalised: bool = False  # a normalisation stands between the layer and the activation
    output: bool = False  # nothing with parameters follows: the network's own output

    @property
    def layer(self) -> str:
        """The layer whose units these are, as a reader knows it; the site's own name where none was found."""
        return self.layers[0] if self.layers else self.name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteReading:
    """One site in one probed step; arrays have one entry per unit."""

    samples: int  # values seen of each unit: batch size, times positions for a channel
    flat_share: Floats  # share of them where the slope is below `FLAT_SLOPE` of the function's greatest
    silent: NDArray[np.bool_]  # not one of them outside a tail whose slope is exactly zero
    pre_mean: Floats  # of the pre-activation
    pre_std: Floats
    mean: Floats  # of the output
    std: Floats
    gradient: Floats | None = None  # root mean square of d loss / d output; None without a backward pass
    non_finite: int = 0  # outputs that are NaN or infinite
    idle: Floats | None = None  # steps in a row, up to this one, in which no gradient came; None: in each one did
    idle_samples: Floats | None = None  # values in those steps that would have sent one, had the unit fired
    moved: Floats | None = None  # steps done when a gradient was last seen to come, -1 for never; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReading:
    """One parameter tensor in one probed step; norms are Euclidean."""

    norm: float
    gradient: float | None = None  # None: no gradient reached it
    update: float | None = None  # norm of what the optimizer changed in this step


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReading:
    """The batch that went into the network."""

    samples: int
    mean: float
    std: float
    rms: float
    largest: float
    non_finite: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One probed training step."""

    step: int  # optimizer steps done before this one
    loss: float | None
    learning_rate: float | None  # the greatest of the parameter groups
    sites: Mapping[str, SiteReading]
    weights: Mapping[str, WeightReading]
    input: InputReading | None = None
    output_rms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proof:
    """What can be proven of the silent units of one site; arrays have one entry per unit in `units`."""

    site: str
    units: tuple[int, ...]
    hull: NDArray[np.bool_]  # closed for every input of the layer in the convex hull of those seen
    margin: Floats  # from the nearest seen input to the first that fires, as a share of the inputs' median radius
    box: NDArray[np.bool_]  # closed for every input of the layer whose features each stay in the range seen
    samples: int = 0  # inputs of the layer that were seen: positions count
    reasons: tuple[str, ...] = ()  # why nothing can be proven here


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeight:
    """One parameter tensor as it was before training."""

    shape: tuple[int, ...]
    fan_in: int
    mean: float
    std: float
    low: float = 0.0
    high: float = 0.0
    trainable: bool = True
    driven: bool = True  # the optimizer was given it


def alike(weight: InitialWeight) -> bool:
    """Whether all its numbers are the same, as far as float32 tells."""
    return weight.std <= ONE_CONSTANT * abs(weight.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The least loss on some samples that any outputs of the last layer could give."""

    layer: str  # the last one with parameters
    first: float  # the loss before training, in eval mode
    floor: float  # with what stands behind the layer
    free: float  # if nothing did
    constant: float | None = None  # with the same output for every sample; None where too few samples were at hand
    classes: bool = False  # targets are class numbers, so that the greatest output may be right all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All that a watch has read."""

    model: str = ""  # class name of the network
    optimizer: str = ""
    sites: tuple[Site, ...] = ()
    readings: tuple[Reading, ...] = ()
    losses: tuple[float, ...] = ()  # of every step, NaN where none was given
    initial: Mapping[str, InitialWeight] = field(default_factory=dict)
    reach: Reach | None = None  # None: nothing stands between the last layer and the loss, or it could not be told
    blind: tuple[str, ...] = ()  # what could not be seen, and why, one sentence each
    steps: int = 0
    trained: bool = True  # False: a check-up, nothing was trained
    resumed: bool = False  # the optimizer had a state already: the first reading is not of a new network
    finished: bool = True  # False: the run crashed, was interrupted or still goes on
    note: str = ""  # why it stopped early
    seconds: float = 0.0
    watch_share: float | None = None  # of the run's time spent watching, measured
    proofs: tuple[Proof, ...] = ()  # of the units that are silent to the end
    distinct_samples: int | None = None  # different inputs that the last weights were read on; None: not known

    def site(self, name: str) -> Site:
        """The site of that name."""
        return next(site for site in self.sites if site.name == name)

    def of_site(self, name: str) -> tuple[NDArray[np.int64], list[SiteReading]]:
        """Steps at which the site was read, and what was read, in order."""
        pairs = [(reading.step, reading.sites[name]) for reading in self.readings if name in reading.sites]
        return np.array([step for step, _ in pairs], dtype=np.int64), [read for _, read in pairs]


def layer_name(path: str) -> str:
    """A module's path as a reader says it: the parts of a Sequential have only numbers."""
    return f"layer {path}" if path.replace(".", "").isdigit() else path


# JSON ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _converter() -> Any:
    """Records to plain JSON values and back, without loss: NaN and infinities become strings, arrays become lists."""
    from cattrs.preconf.json import make_converter

    converter = make_converter()
    converter.register_unstructure_hook(float, lambda v: v if np.isfinite(v) else str(float(v)))
    converter.register_structure_hook(float, lambda v, _: float(v))
    converter.register_unstructure_hook_func(
        lambda t: t is np.ndarray or getattr(t, "__origin__", None) is np.ndarray,
        _array_out,
    )
    converter.register_structure_hook_func(
        lambda t: t is np.ndarray or getattr(t, "__origin__", None) is np.ndarray,
        _array_in,
    )
    return converter


def _array_out(array: NDArray[Any]) -> list[Any]:
    if array.dtype == np.bool_:
        return array.astype(int).tolist()
    # str() of a float32 is the shortest text that reads back as the same float32
    return [float(v) if np.isfinite(v) else str(float(v)) for v in map(float, map(str, array.ravel()))]


def _array_in(values: list[Any], kind: Any) -> NDArray[Any]:
    boolean = "bool" in str(kind)
    return np.array([float(v) for v in values], dtype=np.float32).astype(np.bool_ if boolean else np.float32)


def to_json(record: Any) -> Any:
    """A record as plain values for `json.dumps`; keys are the attribute names."""
    return _converter().unstructure(record)


def from_json(values: Any, kind: type[T]) -> T:
    """The record of type `kind` that `to_json` made these values of."""
    get_type_hints(kind)
    return _converter().structure(values, kind)
