"""Inputs: marginals, Gaussian copula, Nataf correlations, errors."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Gamma, Independent, LogNormal, Normal, Uniform

from tests.statistics import assert_mean
from uq.designs import Iid
from uq.inputs import Input, Inputs, nataf_correlation

POINTS = Iid(2, 4).points(0, 20_000)
LOAD = Input("load", Normal(torch.tensor(5.0).double(), torch.tensor(2.0).double()), "kN")
WIDTH = Input("width", stats.gamma(4.0, scale=0.25), "m")


def test_transform_gives_each_input_its_law():
    values = Inputs([LOAD, WIDTH]).transform(POINTS)
    for j, law in enumerate((stats.norm(5, 2), stats.gamma(4.0, scale=0.25))):
        assert stats.kstest(values[:, j].numpy(), law.cdf).pvalue > 1e-6
    assert_mean(values, torch.tensor([5.0, 1.0]).double(), bias=0.2)


def test_copula_keeps_the_marginals_and_gives_the_normals_their_correlation():
    rho = 0.7
    inputs = Inputs([LOAD, WIDTH], torch.tensor([[1.0, rho], [rho, 1.0]]))
    values = inputs.transform(POINTS)
    assert stats.kstest(values[:, 1].numpy(), stats.gamma(4.0, scale=0.25).cdf).pvalue > 1e-6
    # Ranks know nothing of the marginals: Kendall's tau of a Gaussian copula is (2 / pi) asin(rho).
    tau = stats.kendalltau(values[:, 0].numpy(), values[:, 1].numpy()).statistic
    assert abs(tau - 2 / math.pi * math.asin(rho)) < 4.9 * math.sqrt(4 / (9 * len(POINTS))) * 1.5


def test_nataf_gives_the_wanted_pearson_correlation_of_lognormals():
    a, b = (Input(name, stats.lognorm(0.5)) for name in "ab")
    wanted = torch.tensor([[1.0, 0.4], [0.4, 1.0]])
    found = nataf_correlation([a, b], wanted)[0, 1].item()
    # Closed form for two lognormals of the same shape s.
    assert found == pytest.approx(math.log1p(0.4 * math.expm1(0.25)) / 0.25, abs=1e-6)


def test_tails_are_finite():
    extreme = torch.tensor([[2.0**-53, 1 - 2.0**-53]], dtype=torch.float64)
    independent = Inputs([LOAD, WIDTH])
    joined = Inputs([LOAD, WIDTH], torch.tensor([[1.0, 0.99], [0.99, 1.0]]))
    assert bool(independent.transform(extreme).isfinite().all())
    assert bool(joined.transform(extreme).isfinite().all())


def test_table_and_description_name_laws_and_units():
    inputs = Inputs([LOAD, WIDTH, Input("area", LogNormal(0.0, 0.5), "m^2")])
    columns, rows = inputs.table()
    assert len(columns) == len(rows[0])
    assert rows[0] == ["load", "kN", "Normal(loc=5, scale=2)", 5.0, 2.0]
    assert "gamma(4, scale=0.25) [m]" in repr(inputs)
    assert inputs.units == ("kN", "m", "m^2")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Input("a", Gamma(1.0, 1.0)), TypeError, "inverse CDF; got torch's Gamma.*scipy"),
        (lambda: Input("a", 3.0), TypeError, "`distribution` must be a torch distribution"),
        (
            lambda: Input("a", Normal(torch.zeros(2), 1.0)),
            ValueError,
            r"must be scalar; got batch shape \(2,\)",
        ),
        (lambda: Input("a", Independent(Normal(torch.zeros(2), 1.0), 1)), ValueError, "must be scalar"),
        (lambda: Input("", Normal(0.0, 1.0)), ValueError, "`name` must not be empty"),
        (lambda: Input("a", stats.norm(0, -1)), ValueError, "finite median"),
        (lambda: Inputs([]), ValueError, "at least one input"),
        (lambda: Inputs([Normal(0.0, 1.0)]), TypeError, "must hold Input objects; got Normal"),
        (lambda: Inputs([LOAD, LOAD]), ValueError, "different names; got load more than once"),
        (lambda: Inputs([LOAD, WIDTH], torch.eye(3)), ValueError, r"shape \(2, 2\); got \(3, 3\)"),
        (lambda: Inputs([LOAD, WIDTH], 2 * torch.eye(2)), ValueError, "ones on its diagonal"),
        (lambda: Inputs([LOAD, WIDTH], torch.tensor([[1, 0.1], [0.3, 1]])), ValueError, "symmetric"),
        (lambda: Inputs([LOAD, WIDTH], torch.ones(2, 2)), ValueError, "positive definite"),
        (lambda: Inputs([LOAD, WIDTH], torch.full((2, 2), math.nan)), ValueError, "finite; got NaN"),
        (lambda: Inputs([LOAD]).transform(torch.ones(3, 1)), ValueError, r"open interval \(0, 1\); got 1.0"),
        (lambda: Inputs([LOAD]).transform(torch.full((3, 1), math.nan)), ValueError, "got nan"),
        (lambda: Inputs([LOAD]).transform(torch.full((3, 2), 0.5)), ValueError, r"must have shape \(n, 1\)"),
        (lambda: Inputs([LOAD]).transform(torch.ones(3, 1, dtype=torch.long)), TypeError, "floating-point"),
        (
            lambda: nataf_correlation(
                [Input("a", stats.lognorm(2.0)), Input("b", stats.lognorm(2.0))],
                torch.tensor([[1.0, -0.9], [-0.9, 1.0]]),
            ),
            ValueError,
            "`pearson` must be reachable",
        ),
    ],
)
def test_inputs_refuse_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_uniform_of_torch_is_exact_at_float64():
    law = Uniform(torch.tensor(-1.0).double(), torch.tensor(3.0).double())
    assert Input("u", law).quantile(torch.tensor([0.25]).double()).item() == 0.0
