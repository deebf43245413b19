"""What a row of the catalogue predicts for a deep network before it is trained.

Throughout, weights are normal with variance `sigma_w2` / fan_in, biases with variance `sigma_b2`, and layers wide, so
that a pre-activation is normal with variance `q`: a mean square, not a length. Nothing here imports torch.

Sources: Poole et al. 2016, arXiv:1606.05340, and Schoenholz et al. 2017, arXiv:1611.01232 (signal propagation); Yang et
al. 2019, arXiv:1902.08129 (batch normalisation); Lu, Shin, Su & Karniadakis 2019, arXiv:1903.06733 (death at
initialisation).
"""

from relume.theory.correlation import Depths, correlation_map, correlations, signal_depth
from relume.theory.criticality import Critical, critical, small_signal, tat_slope
from relume.theory.death import BornDead, born_dead_chance, dead_unit_chance, expected_dead_share, relu_correlation
from relume.theory.moments import Moments, chi, moments
from relume.theory.propagation import FixedVariance, Propagation, fixed_variance, propagate

__all__ = [
    "BornDead",
    "Critical",
    "Depths",
    "FixedVariance",
    "Moments",
    "Propagation",
    "born_dead_chance",
    "chi",
    "correlation_map",
    "correlations",
    "critical",
    "dead_unit_chance",
    "expected_dead_share",
    "fixed_variance",
    "moments",
    "propagate",
    "relu_correlation",
    "signal_depth",
    "small_signal",
    "tat_slope",
]
