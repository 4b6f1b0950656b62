"""Monte Carlo runs: batches, workers, tolerances, failures, replications, errors."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

from benchmarks import engine
from benchmarks.engine_run import run
from sde.noise import NoiseStream
from uq import (
    Failures,
    FunctionModel,
    Halton,
    Input,
    Inputs,
    LatinHypercube,
    RowModel,
    Sobol,
    Tolerance,
    monte_carlo,
)
from uq.reading import OrderedReader

UNIT = Inputs([Input("u", Uniform(torch.zeros(()).double(), torch.ones(()).double()))])
SQUARE = FunctionModel(torch.Tensor.square, input_dim=1, output_shape=(1,))
quiet = partial(monte_carlo, progress=False)


@dataclass(frozen=True)
class Broken:
    """Misbehaves in one of several ways."""

    way: str
    input_dim: int = 0
    output_shape: tuple[int, ...] = ()

    def __call__(self, inputs: Tensor, noise: NoiseStream) -> Tensor:
        values = noise.normals(1, dtype=torch.float64)[:, 0]
        if self.way == "raise" and noise.start >= 100:
            raise ZeroDivisionError("no luck")
        if self.way == "nan":
            ids = torch.arange(noise.start, noise.stop)
            values[ids % 50 == 7] = math.nan
            values[ids % 50 == 8] = math.inf
        return {"shape": values[:, None], "list": values.tolist(), "complex": values + 0j}.get(
            self.way, values
        )


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_result_does_not_depend_on_the_batch_size(batch_size):
    reference = quiet(engine.StandardNormal(), seed=1, num_samples=300)
    result = quiet(engine.StandardNormal(), seed=1, num_samples=300, batch_size=batch_size)
    assert result.digest() == reference.digest()
    assert torch.equal(result.moments.m4, reference.moments.m4)


@pytest.mark.parametrize("batch_size", [10, 333])
def test_tolerance_stops_at_the_same_sample_whatever_the_batches_and_workers(batch_size):
    rule = Tolerance(absolute=0.15)
    reference = quiet(engine.StandardNormal(), seed=4, tolerance=rule)
    with ThreadPoolExecutor(3) as pool:
        result = quiet(engine.StandardNormal(), seed=4, tolerance=rule, batch_size=batch_size, executor=pool)
    assert result.digest() == reference.digest()
    assert torch.equal(result.mean, reference.mean)
    assert result.converged
    assert float(result.half_width) <= 0.15


def test_sequential_rule_has_its_coverage_and_size():
    for figure in engine.sequential_rule(smoke=True):
        assert figure.passed, figure


def test_relative_tolerance_holds_for_every_component():
    model = FunctionModel(lambda x: torch.cat([x, x.square()], -1), input_dim=1, output_shape=(2,))
    result = quiet(model, UNIT, seed=2, tolerance=Tolerance(relative=0.02))
    assert bool((result.half_width <= 0.02 * result.mean).all())


def test_missed_tolerance_is_said_aloud():
    with pytest.warns(RuntimeWarning, match="not met after 200 samples"):
        result = quiet(engine.StandardNormal(), seed=1, tolerance=Tolerance(absolute=1e-3, max_samples=200))
    assert not result.converged


def test_failed_samples_are_raised_with_their_ids():
    with pytest.raises(RuntimeError, match=r"2 samples failed .*: 7, 8\. .*failures=Failures.OMIT"):
        quiet(Broken("nan"), seed=1, num_samples=100, batch_size=50)


def test_omitted_samples_are_counted_and_in_no_statistic():
    result = quiet(Broken("nan"), seed=1, num_samples=500, failures=Failures.OMIT)
    assert result.failed.tolist() == [i for i in range(500) if i % 50 in (7, 8)]
    assert (result.num_samples, result.num_failed, result.moments.count) == (500, 20, 480)
    torch.testing.assert_close(result.mean, result.valid.mean(), rtol=1e-12, atol=1e-14)


def test_a_run_in_which_all_samples_fail_has_no_mean():
    model = FunctionModel(lambda x: x[:, 0] * math.nan, input_dim=1)
    result = quiet(model, UNIT, seed=1, num_samples=20, failures=Failures.OMIT)
    assert result.num_failed == 20
    assert bool(result.std_error.isnan())


def test_replicated_sobol_is_precise_and_its_error_is_known():
    result = quiet(SQUARE, UNIT, seed=1, num_samples=16 * 64, design=Sobol(1, 3), replications=16)
    independent = math.sqrt(4 / 45 / result.num_samples)
    assert float((result.mean - 1 / 3).abs()) < 5 * float(result.std_error)
    assert float(result.std_error) < independent / 10
    assert result.replication_means.shape == (16, 1)


def test_replicated_coverage():
    figure = next(iter(engine.replicated_sobol(smoke=True)))
    assert figure.passed, figure


def test_tolerance_with_replications_doubles():
    rule = Tolerance(absolute=1e-4, max_samples=8 * 1024)
    result = quiet(SQUARE, UNIT, seed=1, tolerance=rule, design=Sobol(1, 3), replications=8)
    assert result.converged
    assert math.log2(result.num_samples / 8).is_integer()


@pytest.mark.parametrize("design", [Sobol(1, 1), Halton(1, 1), LatinHypercube(1, 64, 1)])
def test_dependent_points_have_no_error_without_replications(design):
    result = quiet(SQUARE, UNIT, seed=1, num_samples=64, design=design)
    with pytest.raises(ValueError, match="not independent"):
        result.std_error  # noqa: B018
    assert result.quantile(0.5, (0,)).high == math.inf


def test_row_model_is_the_function_model():
    rows = quiet(RowModel(lambda u: u * u, input_dim=1), UNIT, seed=1, num_samples=50)
    batch = quiet(FunctionModel(lambda x: (x * x)[:, 0], input_dim=1), UNIT, seed=1, num_samples=50)
    assert rows.digest() == batch.digest()


def test_default_dtype_and_threads_are_left_as_they_were():
    before = torch.get_num_threads(), torch.get_default_dtype()
    with pytest.raises(
        RuntimeError, match=r"The model raised ZeroDivisionError on samples 100 to 149: no luck"
    ):
        quiet(Broken("raise"), seed=1, num_samples=200, batch_size=50)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before


def test_process_pool_gives_the_digest_of_serial():
    assert run("pool", samples=200).digest() == run("serial", samples=200).digest()


@pytest.mark.slow
def test_dask_gives_the_digest_of_serial():
    pytest.importorskip("distributed")
    assert run("dask").digest() == run("serial").digest()


@pytest.mark.slow
@pytest.mark.mpi
def test_mpi_gives_the_digest_of_serial():
    digest = engine.mpi_digest()
    if digest.startswith("(mpi4py"):
        pytest.skip(digest)
    assert digest == run("serial").digest()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: quiet(print, seed=1, num_samples=9), TypeError, "`model` must have input_dim"),
        (lambda: quiet(SQUARE, UNIT, seed=1), ValueError, "must be given, and not both; got neither"),
        (
            lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, tolerance=Tolerance(absolute=1)),
            ValueError,
            "got both",
        ),
        (
            lambda: quiet(SQUARE, seed=1, num_samples=9),
            ValueError,
            "`inputs` must have dimension 1.*no inputs",
        ),
        (lambda: quiet(SQUARE, UNIT, seed=-1, num_samples=9), ValueError, "`seed` must lie in"),
        (lambda: quiet(SQUARE, UNIT, seed=1, num_samples=0), ValueError, "`num_samples` must be at least 1"),
        (lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9.0), TypeError, "`num_samples` must be an integer"),
        (lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, batch_size=0), ValueError, "`batch_size`"),
        (lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, confidence=95), ValueError, "`confidence`"),
        (lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, workers=0), ValueError, "`workers` must be"),
        (lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, executor="dask"), TypeError, "method submit"),
        (
            lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, design=Sobol(2, 1)),
            ValueError,
            "`design` must have dimension 1",
        ),
        (
            lambda: quiet(SQUARE, UNIT, seed=1, num_samples=9, design=Sobol(1, 1), replications=2),
            ValueError,
            "multiple of the 2 replications",
        ),
        (
            lambda: quiet(SQUARE, UNIT, seed=1, tolerance=Tolerance(absolute=0.1), design=Sobol(1, 1)),
            ValueError,
            "not independent",
        ),
        (
            lambda: quiet(Broken(""), seed=1, num_samples=8, replications=2),
            ValueError,
            "for models with inputs",
        ),
        (
            lambda: quiet(Broken("shape"), seed=1, num_samples=9),
            ValueError,
            r"return shape \(9,\); got \(9, 1\)",
        ),
        (lambda: quiet(Broken("list"), seed=1, num_samples=9), TypeError, "return a tensor; got list"),
        (lambda: quiet(Broken("complex"), seed=1, num_samples=9), TypeError, "real numbers; got complex"),
        (lambda: Tolerance(), ValueError, "one positive; got 0.0 and 0.0"),
        (lambda: Tolerance(absolute=math.nan), ValueError, "must be at least 0"),
        (lambda: Tolerance(absolute=1, min_samples=1), ValueError, "2 <= min_samples"),
        (
            lambda: RowModel(lambda u: [u, u], 1)(torch.ones(2, 1), NoiseStream(0, 0, 2)),
            ValueError,
            "for row 0",
        ),
    ],
)
def test_monte_carlo_refuses_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_model_that_cannot_be_pickled_is_refused_in_one_sentence():
    model = FunctionModel((i for i in range(3)), input_dim=1)  # generators cannot be pickled by anything
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="`model` must be picklable"):
        quiet(model, UNIT, seed=1, num_samples=9, executor=pool)


def test_reader_reads_nothing_beyond_the_look_at_which_it_stops():
    reader = OrderedReader(1000, Tolerance(absolute=10.0), Failures.RAISE, 0.95, None)
    from uq.execution import Batch

    values = NoiseStream(1, 0, 250).normals(1, dtype=torch.float64)[:, 0].numpy()
    reader.accept(Batch(0, 250, values[:, None][:, :0], values, 0.0))
    assert reader.finished
    assert reader.used == 100


def test_inputs_of_the_result_are_those_the_model_saw():
    inputs = Inputs([Input("a", Normal(0.0, 1.0), "m")])
    result = quiet(
        FunctionModel(lambda x: x[:, 0], input_dim=1), inputs, seed=1, num_samples=30, batch_size=8
    )
    assert torch.equal(result.inputs[:, 0], result.outputs)
    assert (result.input_names, result.input_units) == (("a",), ("m",))
