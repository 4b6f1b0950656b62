"""The examples run, and give the numbers that they promise."""

import pytest

pytest.importorskip("matplotlib", reason="needs the extra plot")

from examples import (
    checkerboard,
    coarse_to_fine,
    double_well,
    executors_and_resume,
    forecast_stochastic_system,
    fractional_bridge,
    latent_lorenz,
    reflow,
    sampler_work_precision,
    sde_monte_carlo,
    sobol_function,
    time_dependent_hurst,
)


def test_sde_monte_carlo_finds_the_exact_mean(tmp_path):
    numbers = sde_monte_carlo.main(tmp_path, accuracy=0.02)
    assert numbers["half_width"] <= 0.02
    # 30 instants at 1e-6 each; the error of the scheme is 1e-4 of a standard error of 1e-2.
    assert numbers["worst_z"] < 5.4
    assert numbers["std_error"] < 0.1
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_sobol_points_beat_independent_ones(tmp_path):
    numbers = sobol_function.main(tmp_path, largest=10)
    assert numbers["slope_independent"] == pytest.approx(-0.5, abs=0.15)
    assert numbers["slope_sobol"] < -0.85
    assert numbers["gain"] > 10
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_executors_and_a_killed_run_agree(tmp_path):
    pytest.importorskip("zarr", reason="needs the extra io")
    numbers = executors_and_resume.main(tmp_path, samples=400)
    assert len(set(numbers["digests"].values())) == 1
    assert 200 <= numbers["committed_at_kill"] < 400
    assert numbers["resumed_evaluations"] == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_fractional_bridges_are_right_with_the_automatic_grid_only(tmp_path):
    numbers = fractional_bridge.main(tmp_path)
    assert numbers["automatic"] < 0.01
    assert numbers["published"] > 0.1
    assert numbers["evidence"] < 0.01
    assert numbers["spread"] < 1e-8
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_volatility_is_rough_and_its_proxy_noisy(tmp_path):
    pytest.importorskip("arch", reason="needs the extra data")
    from examples import rough_volatility

    numbers = rough_volatility.main(tmp_path)
    proxy, implied = numbers["S&P 500, range"], numbers["VIX"]
    plain, noisy = proxy["maximum likelihood"], proxy["Markov likelihood with noise"]
    # Noise drags the plain estimate down; the model of it finds more, but far from one half.
    assert plain[2] < noisy[0] < noisy[2] < 0.5
    assert implied["maximum likelihood"][2] < 0.5
    for series in (proxy, implied):  # two estimators that share no code, each within the other's interval
        one, other = series["maximum likelihood"], series["Whittle"]
        assert one[1] < other[0] < one[2]
        assert other[1] < one[0] < other[2]
        # With thousands of values and a flat prior, credible and confidence interval nearly agree.
        noisy, law = series["Markov likelihood with noise"], series["posterior with noise"]
        assert noisy[1] < law[0] < noisy[2]
        assert 0.7 < (law[2] - law[1]) / (noisy[2] - noisy[1]) < 1.4
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_latent_lorenz_learns_at_once(tmp_path):
    numbers = latent_lorenz.main(tmp_path, epochs=4)
    assert numbers["bound"] > 0.5 * numbers["bound_before"]  # both are negative
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "log.csv").read_text().startswith("iteration,loss,seconds,validation")


@pytest.mark.slow
def test_latent_lorenz_imputes_and_forecasts(tmp_path):
    numbers = latent_lorenz.main(tmp_path)
    assert numbers["bound"] > 0
    assert numbers["imputation_error"] < 0.15
    assert numbers["forecast_error"] < 0.5 * numbers["last_value_error"]
    assert numbers["forecast_coverage"] > 0.85


@pytest.mark.slow
def test_a_time_dependent_hurst_index_is_learned(tmp_path):
    numbers = time_dependent_hurst.main(tmp_path)
    assert numbers["mean_error"] < 0.05
    assert numbers["largest_error"] < 0.12
    assert numbers["mean_error"] < 0.25 * min(numbers["constant_error"], numbers["local_error"])
    assert numbers["scale"] == pytest.approx(1.0, abs=0.1)
    assert numbers["noise"] == pytest.approx(time_dependent_hurst.NOISE, abs=0.02)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_time_dependent_hurst_index_improves_at_once(tmp_path):
    numbers = time_dependent_hurst.main(tmp_path, epochs=8)
    assert numbers["loss"] < numbers["loss_before"] - 5
    assert numbers["mean_error"] < numbers["constant_error"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_double_well_drift_is_found_where_the_particle_was(tmp_path):
    numbers = double_well.main(tmp_path, series=64, sweeps=80)
    assert numbers["drift_error"] < 0.6 * numbers["zero_error"]
    assert numbers["widening"] > 3
    assert numbers["sigma"] == pytest.approx(double_well.SIGMA, abs=4.9 * numbers["sigma_deviation"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_reflow_straightens_at_once(tmp_path):
    numbers = reflow.main(tmp_path, iterations=200, points=300)
    # Independent pairs: one step of Euler's method sends every point to the mean of the target.
    assert numbers["one_step_before"] == pytest.approx(numbers["mean_only"], rel=0.1)
    assert numbers["straightness"] < 0.1 * numbers["straightness_before"]
    assert numbers["one_step"] < 0.5 * numbers["one_step_before"]


def test_solvers_have_their_orders_and_learned_ones_need_few_evaluations(tmp_path):
    numbers = sampler_work_precision.main(tmp_path, iterations=20, samples=200)
    # Between 32 and 128 evaluations of one problem, not in the limit.
    for order, slack in ((1, 0.1), (2, 0.2), (3, 0.4)):
        assert numbers[f"slope {order}"] == pytest.approx(order, abs=slack)
    assert numbers["S4S 5"] < 0.25 * numbers["fixed 5"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_reflow_makes_one_step_as_good_as_a_fine_solve(tmp_path):
    numbers = reflow.main(tmp_path)
    assert numbers["straightness"] < 0.01 * numbers["straightness_before"]
    assert numbers["one_step"] < numbers["floor"] + 0.05
    assert numbers["map_change"] < 0.1


def test_learned_flows_beat_solvers_at_three_evaluations(tmp_path):
    numbers = sampler_work_precision.main(tmp_path)
    assert numbers["rectified flow 3"] < 0.5 * numbers["fixed 3"]
    assert numbers["flow map 3"] < 0.5 * numbers["fixed 3"]
    assert numbers["S4S 3"] < numbers["fixed 3"]


def _video(folder, **sizes):
    pytest.importorskip("sklearn", reason="needs the extra data")
    from examples import latent_video

    numbers = latent_video.main(folder, **sizes)
    assert (folder / "figure.png").stat().st_size > 10_000
    for noise in ("Brownian", "fractional"):
        assert (folder / f"{noise}-0" / "log.csv").read_text().startswith("iteration,loss,seconds")
    return numbers


def test_latent_video_learns_at_once(tmp_path):
    numbers = _video(tmp_path, iterations=25, seeds=1, train_videos=32, test_videos=4, batch=4)
    for noise in ("brownian", "fractional"):  # bounds are negative
        assert numbers[f"{noise}_bound"] > 0.9 * numbers["bound_before"]


@pytest.mark.slow
def test_latent_video_follows_the_digits(tmp_path):
    numbers = _video(tmp_path, seeds=1)
    for noise in ("brownian", "fractional"):
        assert numbers[f"{noise}_bound"] > 0 > numbers["bound_before"]
        assert numbers[f"{noise}_reconstruction"] > numbers["mean_frame_reconstruction"] + 1
    assert numbers["fractional_hurst"] > 0.5


@pytest.mark.slow
def test_forecasts_of_the_noisy_lorenz_system_are_almost_those_of_its_equation(tmp_path):
    numbers = forecast_stochastic_system.main(tmp_path, epochs=40)
    assert numbers["learned"] < 1.03 * numbers["equation"]
    assert numbers["learned_last"] < 1.03 * numbers["equation_last"] < numbers["climatology_last"]
    assert numbers["equation"] < 0.5 * numbers["climatology"] < 0.5 * numbers["persistence"]
    for name in ("flow", "0.3 of own", "own", "Föllmer"):
        assert numbers[f"excess, {name}"] < 3
    assert numbers["p_value"] > 1e-6
    assert abs(numbers["coverage"] - 0.8) < 5 * numbers["coverage_error"]
    assert abs(numbers["ratio"] - 1) < 0.15
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_bridge_from_coarse_to_fine_beats_a_regression(tmp_path):
    numbers = coarse_to_fine.main(tmp_path)
    assert numbers["bridge"] < numbers["regression"] < numbers["coarse"]
    assert numbers["power_coarse"] < 0.5
    assert abs(numbers["power_bridge"] - 1) < 0.15
    assert abs(numbers["peak_bridge"] / numbers["peak_fine"] - 1) < 0.05
    assert numbers["peak_coarse"] < 0.85 * numbers["peak_fine"]
    assert abs(numbers["coverage_bridge"] - 0.8) < 0.1
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_checkerboard_is_found_at_once(tmp_path):
    numbers = checkerboard.main(tmp_path, iterations=60, points=1000)
    # The share of the light cells under the base, and the divergence of the board from it, are 0.5 and 2.1.
    assert numbers["flow_outside"] < 0.5
    assert numbers["gap"] < 1
    assert numbers["floor"] < numbers["flow"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_diffusion_of_the_checkerboard_is_nearer_than_the_flow(tmp_path):
    numbers = checkerboard.main(tmp_path)
    assert numbers["floor"] < numbers["score"] < numbers["flow"]
    assert numbers["denoiser"] < 1.1 * numbers["flow"]
    assert numbers["denoiser_outside"] < 0.15
    assert numbers["gap"] < 0.3


def _digits(folder, **sizes):
    pytest.importorskip("sklearn", reason="needs the extra data")
    from examples import digits_interpolant

    numbers = digits_interpolant.main(folder, **sizes)
    assert (folder / "figure.png").stat().st_size > 10_000
    return numbers


def test_digits_are_read_as_asked_at_once(tmp_path):
    numbers = _digits(tmp_path, iterations=200, images=200)
    assert numbers["real"] > 0.95
    # One in ten is read by chance: at 200 images 0.25 is seven standard errors away.
    assert numbers["unconditional"] < 0.25 < numbers["guided"]


@pytest.mark.slow
def test_digits_are_read_as_asked_and_are_new(tmp_path):
    numbers = _digits(tmp_path)
    assert numbers["unconditional"] < 0.2
    assert numbers["plain"] > 0.85
    assert numbers["guided"] > 0.95
    # One half where nothing is copied; at 1000 images 0.58 is five standard errors away.
    assert numbers["copied"] < 0.58
    assert numbers["distance_ratio"] > 0.9
    assert numbers["guided_spread"] < numbers["spread"]
