"""Proofs that units stay closed: against geometry, vertices of boxes, explicit patches and the network itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relume
from relume import proof as proofs
from relume import recorder as recording_module
from relume.proof import Proof, prove, silent_units
from relume.recording import Reading, Recording, Site, SiteReading, from_json, to_json
from relume.symptoms import find


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def only(found: tuple[Proof, ...]) -> Proof:
    assert len(found) == 1
    return found[0]


# the hull -----------------------------------------------------------------------------------------------------------


def test_the_margin_is_the_distance_of_plane_geometry():
    """In the plane, margin is the distance from the nearest point to the line where the unit fires, by the radius."""
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])  # mean (1, 1), each at distance sqrt(2)
    # fires right of x = 5; beyond x + y = 10; right of x = 1, so for some that were seen
    layer = linear(torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), torch.tensor([-10.0, -10.0, -1.0]))

    found = only(prove(nn.Sequential(layer, nn.ReLU()), [x], {"1": [0, 1, 2]}))

    expected = [3 / math.sqrt(2), 6 / math.sqrt(2) / math.sqrt(2), -1 / math.sqrt(2)]
    assert found.margin == pytest.approx(expected, rel=1e-4)
    assert found.hull.tolist() == [True, True, False]
    assert found.samples == 4 and found.reasons == ()


NETWORKS = [  # how to build one, its site, and the shape of an input
    pytest.param(lambda: [nn.Linear(12, 40), nn.ReLU()], (12,), id="linear"),
    pytest.param(lambda: [nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU()], (12,), id="batch norm"),
    pytest.param(lambda: [nn.Conv2d(3, 40, 3, padding=1), nn.ReLU()], (3, 6, 6), id="conv"),
    pytest.param(
        lambda: [nn.Conv2d(4, 40, 3, padding="same", dilation=2, groups=2), nn.ReLU6()], (4, 6, 6), id="groups"
    ),
    pytest.param(
        lambda: [nn.Conv2d(3, 40, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(40), nn.ReLU()], (3, 5, 5),
        id="circular",
    ),
    pytest.param(lambda: [nn.Conv1d(3, 40, 2, stride=2), nn.Hardtanh()], (3, 8), id="conv1d"),
    pytest.param(lambda: [nn.Linear(12, 40), nn.Dropout(0.5), nn.Hardsigmoid()], (12,), id="hardsigmoid"),
]  # fmt: skip
UNITS = range(40)


def closed_in_part(parts: list[nn.Module], scale: float) -> nn.Sequential:
    """Random biases of both signs, so that some units are always in a tail, and a norm unlike a new one."""
    for seed, part in enumerate(parts):
        layer: Any = part
        with torch.no_grad():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                layer.running_mean.copy_(draw(seed, 40))
                layer.running_var.copy_(draw(seed + 10, 40).abs() + 0.1)
                layer.weight.copy_(draw(seed + 20, 40))  # negative ones turn the unit round
            if next(part.parameters(), None) is not None:
                shape = layer.weight.shape
                layer.weight.copy_(draw(seed + 30, *shape) / math.prod(shape[1:]) ** 0.5)
                layer.bias.copy_(scale * draw(seed + 40, 40))
    return nn.Sequential(*parts).eval()


def gradient_at(model: nn.Module, site: str, x: Tensor) -> Tensor:
    """Of each unit at the site, the greatest slope over x: what autograd says."""
    kept: list[Tensor] = []
    module = model.get_submodule(site)
    hook = module.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach().requires_grad_()) or kept[0])
    module_output = model(x)
    hook.remove()
    module_output.sum().backward()
    assert kept[0].grad is not None
    return kept[0].grad.abs().movedim(1, -1).flatten(0, -2).amax(0)


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_no_input_between_those_seen_opens_a_proven_unit(build: Callable[[], list[nn.Module]], shape: tuple[int, ...]):
    """Units are proven that are silent on all batches, and no convex combination of the inputs seen makes them fire."""
    model = closed_in_part(build(), 4.0)
    site = str(len(model) - 1)
    x = draw(2, 200, *shape)
    found = only(prove(model, [x[:100], x[100:]], {site: UNITS}))
    dead = gradient_at(model, site, x) == 0
    assert found.hull.tolist() == dead.tolist() and 5 < int(dead.sum()) < 35
    assert ((found.margin > 0) == found.hull).all()
    assert only(prove(model, [x[:100], x[100:]])).units == tuple(torch.nonzero(dead).flatten().tolist())

    weights = torch.from_numpy(np.random.default_rng(3).dirichlet(np.full(200, 0.02), 1000))
    between = (weights @ x.double().flatten(1)).float().reshape(1000, *shape)
    assert not gradient_at(model, site, between)[dead].any()


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_no_input_of_the_box_opens_a_proven_unit(build: Callable[[], list[nn.Module]], shape: tuple[int, ...]):
    """Random points and random vertices of the box of inputs leave units proven on it at slope zero."""
    model = closed_in_part(build(), 10.0)
    site = str(len(model) - 1)
    x = draw(2, 200, *shape).clamp(-1.5, 1.5)
    x[:, shape[0] // 2 :] *= 0.2  # a box that is not a cube
    found = only(prove(model, [x[:100], x[100:]], {site: UNITS}))
    assert 5 < found.box.sum() < 35
    assert not found.box[~found.hull].any(), "the hull lies in the box"
    rest = [d for d in range(x.dim()) if d != 1]
    low, high = x.amin(rest, keepdim=True), x.amax(rest, keepdim=True)
    inside = low + torch.rand(1000, *shape, generator=torch.Generator().manual_seed(3)) * (high - low)
    vertices = torch.where(draw(4, 1000, *shape) > 0, low, high)
    for points in (x, inside, vertices):
        assert not gradient_at(model, site, points)[torch.from_numpy(found.box)].any()


def test_box_bounds_are_those_of_the_vertices():
    """A unit is proven on the box exactly where the greatest value over all 2^8 vertices is not above zero."""
    weight, bias = draw(5, 300, 8), 12.0 * draw(6, 300)
    x = draw(7, 50, 8)
    model = nn.Sequential(linear(weight, bias), nn.ReLU())
    found = only(prove(model, [x]))
    corners = torch.tensor([c for c in product(*zip(x.amin(0).tolist(), x.amax(0).tolist(), strict=True))])
    worst = (corners.double() @ weight.double().T + bias.double()).amax(0)[list(found.units)]
    assert 20 < found.box.sum() < len(found.units) - 20
    assert found.box.tolist() == (worst <= 0).tolist()


def test_a_batch_norm_is_folded():
    """Bounds and margin behind a BatchNorm are those of one linear layer with its scale and shift multiplied in."""
    layer, norm, relu = parts = [nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU()]
    model = closed_in_part(parts, 10.0)
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    same = linear(layer.weight * scale[:, None], (layer.bias - norm.running_mean) * scale + norm.bias)
    x = draw(2, 200, 12)
    found, other = only(prove(model, [x], {"2": UNITS})), only(prove(nn.Sequential(same, relu), [x], {"1": UNITS}))
    assert found.hull.tolist() == other.hull.tolist() and found.box.tolist() == other.box.tolist()
    assert found.margin == pytest.approx(other.margin, rel=1e-3, abs=1e-4)


def test_a_convolution_is_as_a_linear_layer_on_its_patches():
    """Hull and margin of a convolution are those of the same weights on patches that `unfold` lays out."""
    torch.manual_seed(0)
    conv: Any = nn.Conv2d(3, 30, 3, stride=2, padding=2, dilation=2)
    with torch.no_grad():
        conv.bias.copy_(draw(8, 30) - 1)
    x = draw(9, 10, 3, 7, 7)
    patches = F.unfold(x, 3, dilation=2, padding=2, stride=2).movedim(1, 2).reshape(-1, 27)
    same = linear(conv.weight.detach().reshape(30, 27), conv.bias.detach())
    found = only(prove(nn.Sequential(conv, nn.ReLU()), [x]))
    other = only(prove(nn.Sequential(same, nn.ReLU()), [patches]))
    assert found.units == other.units and found.samples == other.samples == len(patches)
    assert found.hull.tolist() == other.hull.tolist() and found.hull.any()
    assert found.margin == pytest.approx(other.margin, rel=1e-4, abs=1e-5)  # float32's rounding is taken off both
    # the box of a convolution lets each channel range alike at every place of the kernel: it is the larger of the two
    assert not found.box[~other.box].any()


def test_zero_padding_belongs_to_the_box():
    """A unit that only the zeros at the border would open is not closed on the box, nor on the hull."""
    conv: Any = nn.Conv1d(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight.fill_(-1.0)
        conv.bias.fill_(2.5)
    x = torch.ones(4, 1, 5)  # three ones give -0.5, two ones and a zero 0.5
    padded = only(prove(nn.Sequential(conv, nn.ReLU()), [x], {"1": [0]}))
    conv.padding = (0,)
    bare = only(prove(nn.Sequential(conv, nn.ReLU()), [x], {"1": [0]}))
    assert (padded.hull.item(), padded.box.item()) == (False, False)
    assert (bare.hull.item(), bare.box.item()) == (True, True)


# tails --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "bias"),
    [(nn.ReLU6(), 9.0), (nn.ReLU6(), -3.0), (nn.Hardtanh(), 4.0), (nn.Hardsigmoid(), 6.0), (nn.Softshrink(8.0), 0.0)],
    ids=str,
)
def test_every_stretch_of_slope_zero_counts(function: nn.Module, bias: float):
    """Upper tails, lower tails and the stretch between softshrink's knees all close a unit."""
    model = nn.Sequential(linear(torch.ones(1, 2), torch.full((1,), bias)), function)
    found = only(prove(model, [draw(0, 100, 2).clamp(-1, 1)]))
    assert found.hull.all() and found.box.all()
    assert found.margin.item() > 0


def test_a_unit_that_is_silent_in_both_tails_is_not_proven():
    """Between an input in the lower and one in the upper tail lie some for which the unit is alive."""
    model = nn.Sequential(linear(torch.ones(1, 1), torch.zeros(1)), nn.Hardtanh())
    found = only(prove(model, [torch.tensor([[-5.0], [5.0]])]))
    assert found.units == (0,) and not found.hull.any() and not found.box.any()


def test_silent_units_are_those_of_all_readings():
    """A unit that fires in one of the readings is left out, and so is a site without silent units."""

    def reading(silent: list[bool]) -> Reading:
        zeros = np.zeros(len(silent), dtype=np.float32)
        read = SiteReading(
            samples=10, flat_share=zeros, silent=np.array(silent), pre_mean=zeros, pre_std=zeros, mean=zeros, std=zeros
        )
        return Reading(step=0, loss=None, learning_rate=None, sites={"a": read}, weights={})

    assert silent_units([reading([True, True, False]), reading([False, True, False])]) == {"a": (1,)}
    assert silent_units([reading([True, False]), reading([False, True])]) == {}


# rounding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_rounding_bound_holds(seed: int):
    """What float32 makes of sums with heavy cancellation is never further from the exact ones than the bound."""
    n = 300
    x = draw(seed, 400, n) * 10.0 ** draw(seed + 10, 400, n)
    w = draw(seed + 20, 50, n) * 10.0 ** draw(seed + 30, 50, n)
    error = (F.linear(x, w).double() - F.linear(x.double(), w.double())).abs()
    size = F.linear(x.double().abs(), w.double().abs())
    assert (error <= proofs._rounding(n, torch.finfo(torch.float32).eps / 2) * size).all()
    assert (error > 0).any()


def test_what_rounding_may_open_is_not_proven():
    """A unit that is closed in exact arithmetic by less than float32 rounds is not called proven."""
    weight, x = draw(1, 1, 200), draw(2, 64, 200)
    greatest = float((x.double() @ weight.double().T).max())
    for below, proven in ((1e-7, False), (1e-2, True)):
        model = nn.Sequential(linear(weight, torch.tensor([-greatest - below])), nn.ReLU())
        found = only(prove(model, [x], {"1": [0]}))
        assert found.hull.item() is proven


def test_autocast_widens_the_slack():
    """Where a layer computes in bfloat16, a margin that is enough for float32 is not."""
    weight, x = draw(1, 1, 30), draw(2, 64, 30)
    greatest = float((x.double() @ weight.double().T).max())
    model = nn.Sequential(linear(weight, torch.tensor([-greatest - 1e-2])), nn.ReLU())

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.model(x)

    assert only(prove(model, [x], {"1": [0]})).hull.item()
    assert not only(prove(Cast(), [x], {"model.1": [0]})).hull.item()


def test_a_unit_without_weights_is_closed():
    """Zero weights and no bias give exactly zero, whatever comes in."""
    found = only(prove(nn.Sequential(linear(torch.zeros(1, 3), torch.zeros(1)), nn.ReLU()), [draw(0, 10, 3)]))
    assert found.hull.item() and found.box.item()


# no proof -----------------------------------------------------------------------------------------------------------


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + x)


class Overwrites(Adds):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        z = self.layer(x)
        x.zero_()
        return F.relu(z)


class Doubles(Adds):
    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        z.mul_(2.0)
        return F.relu(z)


@pytest.mark.parametrize(
    ("model", "site", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), "2", "a BatchNorm in training mode"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()), "2", "a LayerNorm stands between"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU()), "2", "dropout stands between"),
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU(init=0.0)), "1", "its slope is learnt"),
        (nn.Sequential(nn.Linear(4, 4), nn.ELU()), "1", "no stretch of slope zero"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "1", "it has 3 units: there is no unit 3"),
        (nn.ReLU(), "relu", "no linear or convolutional layer was seen"),
        (nn.Sequential(nn.ReLU()), "0", "no linear or convolutional layer was seen"),
        (Adds(), "relu", "add stands between the layer and the function"),
        (Overwrites(), "relu", "what its layer read was overwritten"),
        (Doubles(), "relu", "no linear or convolutional layer was seen"),
        (nn.Sequential(nn.Conv1d(1, 4, 1), nn.Flatten(), nn.ReLU()), "2", "flatten stands between"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_proven_it_says_why(model: nn.Module, site: str, reason: str):
    """Each kind of network that hides the affine map gives a reason, and no unit is called proven."""
    model.train()
    x = draw(0, 20, 1, 4) if isinstance(model, nn.Sequential) and isinstance(model[0], nn.Conv1d) else draw(0, 20, 4)
    found = only(prove(model, [x], {site: [0, 3]}))
    assert reason in found.reasons[0]
    assert not found.hull.any() and not found.box.any() and np.isnan(found.margin).all()


def test_a_layer_norm_bounds_what_comes_out():
    """Of d numbers with mean square 1, none is beyond sqrt(d): a bias below that closes the unit for every input."""
    norm = nn.LayerNorm(9)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([-3.01, -2.9, *[0.0] * 7]))
        norm.weight[1] = 0.5
        norm.weight[2] = -1.0
    model = nn.Sequential(nn.Linear(9, 9), norm, nn.ReLU())
    found = only(prove(model, [draw(0, 500, 9)], {"2": [0, 1, 2]}))
    assert found.hull.tolist() == found.box.tolist() == [True, True, False]
    assert found.margin == pytest.approx([0.01 / 3, (2.9 - 1.5) / 1.5, -1.0], rel=1e-3)
    spike = torch.zeros(1, 9)
    spike[0, 0] = 1e6  # comes closest to the bound: sqrt(d - 1)
    assert 2.8 < float(F.layer_norm(spike, (9,)).max()) < 3


def test_nothing_is_left_behind():
    """Parameters, buffers, modes and random numbers are after a proof what they were before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    prove(model, [draw(0, 16, 4)], {"3": [0]})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


# in a run -----------------------------------------------------------------------------------------------------------


def ill(seed: int, dead: int = 20) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    layer: Any = model[0]
    with torch.no_grad():
        layer.bias[:dead] = -50.0
    return model


def watched(seed: int, samples: int = 1200, batch: int = 100, journal: Path | None = None) -> relume.watch:
    model = ill(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = draw(seed, samples, 6)
    with relume.watch(model, optimizer, journal=journal) as watch:
        for step in range(30):
            at = step * batch % samples
            loss = model(x[at : at + batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
    return watch


def test_a_watch_proves_the_units_that_it_found_dead(tmp_path: Path):
    """The proof is in the recording, also after JSON and in the journal, in the symptom's evidence and in the text."""
    watch = watched(0, journal=tmp_path / "run.sqlite")
    report = watch.report()
    recorded = only(report.recording.proofs)
    assert recorded.site == "1" and recorded.units == tuple(range(20))
    assert recorded.hull.all() and recorded.box.all() and (recorded.margin > 1).all()

    again = only(from_json(json.loads(json.dumps(to_json(report.recording))), Recording).proofs)
    kept = only(relume.read_journal(tmp_path / "run.sqlite").proofs)
    for copy in (again, kept):
        assert (copy.site, copy.units, copy.samples) == (recorded.site, recorded.units, recorded.samples)
        for name in ("hull", "margin", "box"):
            one, other = getattr(copy, name), getattr(recorded, name)
            assert one.dtype == other.dtype and np.array_equal(one, other)

    evidence = next(s for s in report.symptoms if s.kind == "dead").evidence
    assert (evidence["proven_on_hull"], evidence["proven_on_box"]) == (20, 20)
    assert evidence["smallest_margin"] == pytest.approx(recorded.margin.min())
    assert evidence["median_margin"] == pytest.approx(np.median(recorded.margin))
    assert "20 dead units: 20 proven closed for every input of their layer between those seen" in " ".join(
        str(report).split()
    )


def test_a_checkup_proves_too():
    """A check-up keeps the batches that it reads, and proves on them."""
    recording = relume.checkup(ill(0), [draw(0, 600, 6), draw(1, 600, 6)]).recording
    assert only(recording.proofs).hull.all()
    assert recording.distinct_samples == 1200


def test_a_fault_in_a_proof_is_told_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    """When the proof fails, the report is there without it and says so."""

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(recording_module, "prove_runs", fail)
    report = watched(0).report()
    assert any(s.kind == "dead" for s in report.symptoms) and report.recording.proofs == ()
    assert any("nothing could be proven" in b and "planted" in b for b in report.recording.blind)


ROOT = Path(__file__).parent.parent


def test_the_guide_tells_what_was_measured():
    """The table is that of `benchmarks/results/proof.json`, where no unit fired inside the box it was proven on."""
    measured = json.loads((ROOT / "benchmarks/results/proof.json").read_text())
    page = (ROOT / "docs/guide/verdicts.md").read_text()
    assert measured["networks"] == 36
    for cause, found in measured["killed_by"].items():
        shares = [f"{100 * found[key] / found['dead']:.0f} %" for key in ("hull", "box")]
        bands = [f"{band['fire']} of {band['units']:,}" for band in found["bands"]]
        cells = [cause, f"{found['dead']:,}", *shares, *bands, f"{found['box_fire']} of {found['box']:,}"]
        assert f"| {' | '.join(cells)} |" in page
        assert found["bands"][-1]["fire"] == 0 and found["box_fire_inside"] == 0


# the rate -----------------------------------------------------------------------------------------------------------


def test_samples_seen_again_do_not_count():
    """On 200 inputs read over and over, the bounds are those of 200 samples, though more readings were made."""
    report = watched(0, samples=200).report()
    evidence = next(s for s in report.symptoms if s.kind == "dead").evidence
    assert evidence["samples"] >= 1000 and evidence["distinct_samples"] == 200
    assert evidence["rate_below"] == pytest.approx(3 / 200)
    assert evidence["rate_below_all_units"] == pytest.approx(1 - (0.05 / 40) ** (1 / 200))


def test_the_bound_for_all_units_holds_for_all_at_once():
    """Of networks whose units all fire at the bound's rate, one in twenty has a unit that is silent on n samples."""
    units, n = 64, 1000
    silent = np.ones(units, dtype=np.bool_)
    zeros = np.zeros(units, dtype=np.float32)
    read = SiteReading(
        samples=n, flat_share=zeros + 1, silent=silent, pre_mean=zeros, pre_std=zeros, mean=zeros, std=zeros
    )
    site = Site(name="a", activation="relu", units=units, axis=-1, order=0)
    recording = Recording(
        sites=(site,), readings=(Reading(step=0, loss=1.0, learning_rate=None, sites={"a": read}, weights={}),)
    )
    evidence = next(s for s in find(recording) if s.kind == "dead").evidence
    rate = evidence["rate_below_all_units"]
    fired = np.random.default_rng(0).binomial(n, rate, size=(20_000, units))
    assert (fired == 0).any(axis=1).mean() == pytest.approx(0.05, abs=0.006)
    assert rate == pytest.approx(math.log(units / 0.05) / n, rel=0.01)
    per_unit = np.random.default_rng(1).binomial(n, evidence["rate_below"], size=20_000)
    assert (per_unit == 0).mean() == pytest.approx(0.05, abs=0.006)
