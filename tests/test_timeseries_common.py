"""The shared time-series blocks: names, bad input, views instead of copies, clocks."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm_nb.timeseries import common as c


def test_names_of_the_card():
    names = """ar_process sinusoid_sum seasonal_panel lagged_panel template_series etth_like load_ett load_csv windows split InstanceNorm last_value
    seasonal_naive drift autoreg ets var DLinear dlinear linear mse mae smape mase per_step paired_block_bootstrap Forecast compare ForecastTable
    register_forecaster""".split()
    assert [n for n in names if not hasattr(c, n)] == []
    assert callable(c.Forecast.plot) and callable(c.ForecastTable.plot)
    assert {"last_value", "seasonal_naive", "drift", "autoreg", "var", "ets", "linear", "dlinear"} <= set(c.forecasters())


@pytest.mark.parametrize("make, match", [
    (lambda: c.windows(torch.zeros(9), 5, 5), r"has 9 steps, fewer than context \+ horizon = 5 \+ 5"),
    (lambda: c.windows(torch.zeros(9), 0, 5), "context must be >= 1, got 0"),
    (lambda: c.windows(torch.zeros(9), 2, 2, 0), "stride must be >= 1, got 0"),
    (lambda: c.Panel([1.0, float("inf")]), "first at step 1, variate 0"),
    (lambda: c.Panel(np.array([[1.0, 2.0], [3.0, np.nan]])), "first at step 1, variate 1"),
    (lambda: c.Panel([1.0, 2.0], np.array(["2024-01-02", "2024-01-01"], "datetime64[D]")), "does not come after"),
    (lambda: c.Panel([1.0, 2.0], np.array(["2024-01-02", "2024-01-02"], "datetime64[D]")), "does not come after"),
    (lambda: c.Panel([1.0, 2.0], np.array(["2024-01-02", "NaT"], "datetime64[D]")), "cannot be read, at step 1"),
    (lambda: c.Panel([1.0, 2.0], ["a", "b"]), "must be times or integers"),
    (lambda: c.Panel([]), "not empty"),
    (lambda: c.Panel([1.0, 2.0], period=0), "period must be >= 1"),
    (lambda: c.Panel([[1.0, 2.0]], names=["a"]), "got 1 and 1"),
    (lambda: c.ar_process([1.0]), "largest root has modulus 1.0000"),
    (lambda: c.ar_process([0.5, 0.6]), "not stable"),
    (lambda: c.ar_process([float("nan")]), "must be finite"),
    (lambda: c.ar_process([0.5], noise=-1), "noise must be >= 0"),
    (lambda: c.sinusoid_sum(0), "n must be >= 1, got 0"),
    (lambda: c.lagged_panel(1), "variates must be >= 2, got 1"),
    (lambda: c.lagged_panel(lags=(5, 3)), "longest_lag must be >= 5, got 3"),
    (lambda: c.lagged_panel(lags=(0, 3)), "shortest_lag must be >= 1, got 0"),
    (lambda: c.lagged_panel(memory=1.0), "memory in"),
    (lambda: c.template_series(0), "templates must be >= 1"),
    (lambda: c.split(torch.zeros(9), (0.5, 0.5, 0.5)), "sum to 1"),
    (lambda: c.split(torch.zeros(9), context=8), "the training part has 6 steps"),
    (lambda: c.mse([1.0], [1.0, 2.0]), "one shape"),
    (lambda: c.mase_scale([1.0, 2.0], 2), "more training steps than one period of 2, got 2"),
    (lambda: c.block_bootstrap([1.0, 2.0], 3), "block must be 1..2 windows, got 3"),
    (lambda: c.block_bootstrap([1.0, np.nan], 1), "finite"),
    (lambda: c.paired_block_bootstrap([1.0], [1.0, 2.0], 1), "one shape"),
    (lambda: c.compare(["autoregg"], [torch.randn(99)], [1]), "nearest: autoreg"),
    (lambda: c.compare([], [torch.randn(99)], [0]), "horizons must be steps >= 1"),
    (lambda: c.compare([], [torch.randn(99)], []), "horizons must be steps >= 1"),
    (lambda: c.DLinear(8, 2, 4), "odd"),
    (lambda: c.real_series("sunspot"), "nearest: sunspots"),
    (lambda: c.load_ett("nowhere", "ETTh9"), "known: ETTh1"),
    (lambda: c.Forecast(torch.zeros(2, 3, 1)).plot(torch.zeros(4, 1)), r"forecast\[row\]"),
    (lambda: c.Forecast(torch.zeros(3, 1))[0], "only a batch"),
])
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match): make()


def test_nan_from_a_forecaster_is_named():
    bad = lambda train, L, H, *, seed: lambda x: torch.full((len(x), H, 1), torch.nan)
    with pytest.raises(ValueError, match="forecaster broken gave NaN"): c.compare({"broken": bad}, [torch.randn(99)], [2], context=8)


def test_a_file_that_is_missing_says_what_to_do():
    with pytest.raises(ValueError, match="load_ett\\('FOLDER', 'ETTm1'\\)"): c.load_ett("no/such", "ETTm1")
    with pytest.raises(ValueError, match="no file missing.csv"): c.load_csv("missing.csv")


def test_unsorted_and_holed_tables(tmp_path):
    file = tmp_path/"t.csv"
    file.write_text("date,a\n2024-01-02,1\n2024-01-01,2\n")
    with pytest.raises(ValueError, match="sort them"): c.load_csv(file)
    file.write_text("date,a\n2024-01-01,1\nyesterday,2\n")
    with pytest.raises(ValueError, match="cannot be read, at step 1"): c.load_csv(file)
    file.write_text("date,a\n2024-01-01,1\n2024-01-02,many\n")
    with pytest.raises(ValueError, match="step 1, variate 0"): c.load_csv(file)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 20))
def test_windows_are_the_slices(L, H, stride, V, extra):
    x = torch.randn(L + H + extra, V, dtype=torch.float64)
    w = c.windows(x, L, H, stride)
    assert len(w.x) == extra // stride + 1 == len(w.stamps)
    for b in range(len(w.x)):
        assert torch.equal(w.x[b], x[b * stride:b * stride + L]) and torch.equal(w.y[b], x[b * stride + L:b * stride + L + H])
        assert w.stamps[b].tolist() == list(range(b * stride, b * stride + L + H))


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 200), st.floats(0.3, 0.8), st.integers(0, 6))
def test_no_target_lies_before_its_border(n, share, context):
    parts = c.split(torch.randn(n), (share, (1 - share) / 2, (1 - share) / 2), context=context)
    a, b = round(n * share), round(n * (share + (1 - share) / 2))
    assert parts.train.stamps.tolist() == list(range(a))
    assert parts.valid.stamps.tolist() == list(range(a - context, b)) and parts.test.stamps.tolist() == list(range(b - context, n))


@pytest.mark.parametrize("name", ["last_value", "seasonal_naive", "drift", "autoreg", "var", "ets", "linear", "dlinear"])
@pytest.mark.parametrize("V, L, H, period", [(1, 7, 9, 3), (3, 30, 1, 12), (2, 8, 5, 1)])
def test_every_baseline_on_every_shape(name, V, L, H, period):
    train = c.Panel(torch.randn(150, V, generator=torch.Generator().manual_seed(0)).cumsum(0), period=period)
    x = c.windows(train, L, H, 9).x
    y = c.get_forecaster(name)(train, L, H, seed=0)(x)
    assert y.shape == (len(x), H, V) and torch.isfinite(y).all()


def test_same_seed_same_series():
    for make in (lambda s: c.ar_process([0.5], 50, seed=s), lambda s: c.sinusoid_sum(50, seed=s), lambda s: c.seasonal_panel(2, 50, seed=s),
                 lambda s: c.lagged_panel(3, n=50, seed=s), lambda s: c.template_series(2, 8, seed=s), lambda s: c.etth_like(50, seed=s)):
        assert torch.equal(make(1).values, make(1).values) and not torch.equal(make(1).values, make(2).values)
