"""Remedies that redraw units or take them away: what they keep, and which units they leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import normalised, residual
from test_remedies import adam, died
from test_surgery import part, train
from torch import Tensor, nn

from relume.errors import RemedyError, SiteError
from relume.remedies import treat
from relume.surgery import KEEPS_FUNCTION
from relume.wiring import follow


@pytest.mark.parametrize("name", ["mlp", "functional_mlp", "conv", "dropped", "transformer", "checkpointed"])
def test_recycled_units_live_again(name: str):
    """Outputs are bit-identical in eval mode, the units fire on 20 to 80 % of the samples."""
    model, optimizer, x = died(name)

    treated = treat(model, optimizer, "recycle", example_input=x)

    assert treated.output_change is not None
    assert treated.output_change <= 1e-6
    shares: dict[str, Tensor] = {}

    def observe(call: Any, z: Tensor) -> Any:
        fires = (z.detach().movedim(call.site.axis, -1).reshape(-1, call.site.units) > 0).double().mean(0)
        shares[call.site.name] = fires
        return lambda result: None

    follow(treated.model, x, observe)
    done = [site for site, words in treated.changes.items() if "redrawn" in words]
    assert done
    for site in done:
        assert bool((shares[site][:2] >= 0.2).all() & (shares[site][:2] <= 0.8).all())


def test_recycled_units_behind_a_norm_start_from_fresh_statistics():
    """With inputs far from zero, stale running statistics would hold a redrawn unit open or shut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(64, 6) + 10
    train(model, adam(model), x, 3)
    with torch.no_grad():
        part(model, "1").bias[:4] = -30

    treated = treat(model, None, "recycle", example_input=x, trained=True)

    z = treated.model[:2].eval()(x) if isinstance(treated.model, nn.Sequential) else x
    assert treated.output_change is not None
    assert treated.output_change <= 1e-6
    assert ((z[:, :4] > 0).float().mean(0) - 0.5).abs().max() <= 0.3
    assert torch.equal(part(treated.model, "1").running_mean[4:], part(model, "1").running_mean[4:])


def test_units_behind_a_layer_norm_are_recycled_and_the_change_is_told():
    """Rows, gain and bias start anew and the units fire; the others share their statistics: outputs move a little."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 3))
    optimizer, x = adam(model), torch.randn(1000, 6)
    train(model, optimizer, x, 3)
    with torch.no_grad():
        part(model, "1").bias[:4] = -30

    treated = treat(model, optimizer, "recycle", example_input=x)

    assert not treated.keeps_function
    assert treated.output_change is not None
    assert 1e-5 < treated.output_change < 1
    assert "whose mean and variance run over its units" in treated.changes["2"]
    z = (treated.model[:2] if isinstance(treated.model, nn.Sequential) else treated.model)(x)
    assert ((z[:, :4] > 0).float().mean(0) - 0.5).abs().max() <= 0.3
    assert part(treated.model, "1").weight[:4].tolist() == [1.0] * 4
    assert treated.optimizer is not None
    for name, rows in (("0.weight", slice(4)), ("1.weight", slice(4)), ("1.bias", slice(4))):
        was = optimizer.state[model.get_parameter(name)]["exp_avg"]
        now = treated.optimizer.state[treated.model.get_parameter(name)]["exp_avg"]
        assert not bool(now[rows].any())
        assert torch.equal(was[4:], now[4:])
    assert not bool(part(treated.model, "3").weight[:, :4].any())
    with pytest.raises(RemedyError, match="whose mean and variance run over its units"):
        treat(model, optimizer, "smaller_network", example_input=x)


def test_units_that_may_go_do_so_without_those_that_may_not():
    """One unit named dead still fires: it stays, with the reason, and the dead one beside it is treated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(64, 6)
    with torch.no_grad():
        part(model, "0").bias[0] = -30

    recycled = treat(model, None, "recycle", example_input=x, dead={"1": (0, 1)})
    assert recycled.changes["1"].startswith("1 dead units of 0 redrawn")
    assert recycled.changes["1"].endswith("1 dead units left as they are: they still vary where 2 reads them")
    smaller = treat(model, None, "smaller_network", example_input=x, dead={"1": (0, 1)}, trained=True)
    assert part(smaller.model, "0").out_features == 7
    with pytest.raises(SiteError, match="no unit 8 at '1', which has 8"):
        treat(model, None, "recycle", example_input=x, dead={"1": (8,)})


def test_recycling_clears_moments_of_the_recycled_only():
    """Adam's moments are zero for redrawn rows and cut columns, and what they were elsewhere."""
    model, optimizer, x = died()

    treated = treat(model, optimizer, "recycle", example_input=x)

    assert treated.optimizer is not None
    was = optimizer.state[model.get_parameter("2.weight")]["exp_avg"]
    now = treated.optimizer.state[treated.model.get_parameter("2.weight")]["exp_avg"]
    assert not bool(now[:3].any())
    assert not bool(now[:, :4].any())
    assert torch.equal(was[3:, 4:], now[3:, 4:])


def test_a_constant_that_a_dead_unit_gave_moves_into_the_bias():
    """A hard sigmoid stuck at 1 gives a constant; cut off, its share is in the next bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 3))
    with torch.no_grad():
        part(model, "0").bias[:2] = 50.0
    x = torch.randn(64, 6)
    for remedy in ("recycle", "smaller_network"):
        treated = treat(model, None, remedy, example_input=x, trained=True)
        assert treated.keeps_function
        assert treated.output_change is not None
        assert treated.output_change <= KEEPS_FUNCTION
        shift = part(model, "2").weight[:, :2].sum(1) * 6
        moved = part(treated.model, "2").bias - part(model, "2").bias
        assert torch.allclose(moved, shift, atol=1e-5)


def test_a_sparse_unit_is_not_dead():
    """A unit silent on 32 samples close to firing is left alone; named dead, it is believed only while it is silent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 6)
    with torch.no_grad():
        part(model, "0").bias[0] -= part(model, "0")(x)[:, 0].max() + 1e-3
    with pytest.raises(RemedyError, match="no unit is dead"):
        treat(model, None, "recycle", example_input=x)
    assert treat(model, None, "recycle", example_input=x, dead={"1": (0,)}).keeps_function
    with pytest.raises(RemedyError, match="still vary"):
        treat(model, None, "recycle", example_input=x, dead={"1": (1,)})


def test_a_smaller_network_without_its_dead_units():
    """Widths, norms, flattened blocks and the optimizer's moments shrink together; the function stays."""
    model, optimizer, x = died("conv")

    treated = treat(model, optimizer, "smaller_network", example_input=x)

    assert treated.keeps_function
    assert treated.optimizer is not None
    assert part(treated.model, "8").out_features == 8
    assert part(treated.model, "9").num_features == 8
    assert sum(p.numel() for p in treated.model.parameters()) < sum(p.numel() for p in model.parameters())
    weight = treated.model.get_parameter("12.weight")
    assert treated.optimizer.state[weight]["exp_avg"].shape == weight.shape


def test_a_smaller_fresh_network_is_half_as_wide():
    """Hidden widths halve, the variance of what readers get is kept, and residual sums are left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512))
    x = torch.randn(256, 64)
    treated = treat(model, None, "smaller_network", example_input=x)
    assert treated.changes == {"0": "512 units became 256"}
    assert float(treated.model(x).std().detach()) == pytest.approx(float(model(x).std().detach()), rel=0.1)
    model, x = residual(0)
    changes = treat(model, None, "smaller_network", example_input=x).changes
    assert changes["2.conv1"] == "6 units became 3"
    assert "meets other values" in changes["0"]


def test_dead_is_told_in_both_modes():
    """A bias before BatchNorm shuts nothing in training: such a unit is alive, whatever stale statistics say."""
    model, x = normalised(0)
    with torch.no_grad():
        model.get_parameter("0.bias")[:4] = -30

    with pytest.raises(RemedyError, match="no unit is dead"):
        treat(model, None, "recycle", example_input=x)
