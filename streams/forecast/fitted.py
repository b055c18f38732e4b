"""The peak model that Windrow ships: coefficients as data, with where they come from.

On what it had not seen it wins by far where a row's power repeats itself (training, offline batches)
and not at all on inference rows, whose next rise hardly depends on their last. It therefore stands in
only where it has proved itself on the row at hand (`scoring`); elsewhere the baseline is published.
"""

from __future__ import annotations

from streams.forecast.learned import PeakModel

PEAKS = PeakModel(
    name="peaks/linear-quantile-1",
    period_ms=2_000,
    horizons_s=(2.0, 10.0, 40.0),
    quantiles=(0.5, 0.9, 0.99),
    coefficients=(
        (
            (0.0715, -0.4765, -0.0338, -0.0225, -0.0966, 0.0, -0.0215, 0.0, 0.0055, 0.3012, -0.0182),
            (-0.0084, -0.2959, 0.0, -0.0194, 0.1852, 0.1644, 0.0291, 0.0609, 0.0183, 0.0, 0.5082),
            (0.0, 0.0, 0.0, 0.0, 0.2915, 0.2826, 0.1185, 0.1148, 0.0907, 0.0, 0.4269),
        ),
        (
            (0.0005, -0.4092, 0.0175, -0.0125, 0.1539, 0.1521, 0.0326, -0.0057, 0.011, 0.1063, 0.2636),
            (-0.1313, -0.2036, 0.0, 0.0083, 0.006, 0.3397, 0.1484, 0.0665, 0.0709, 0.0, 0.6863),
            (-0.0668, 0.0, 0.0, 0.0, 0.1369, 0.3856, 0.3422, 0.2005, 0.2105, 0.0, 0.0425),
        ),
        (
            (0.0, -0.3048, 0.0096, 0.0234, 0.2724, 0.3081, 0.1552, 0.0406, 0.0291, 0.0, 0.0),
            (-0.0503, 0.0, 0.0258, 0.2077, 0.0464, 0.5641, 0.5048, 0.0321, 0.1072, -0.1125, 0.0),
            (0.0, 0.0, 0.0, 0.0, 0.0, 0.4036, 0.7684, 0.0658, 0.3964, 0.0, 0.0),
        ),
    ),
    fitted_on=(
        "first halves of MLPerf Training v4.0 GPT-3 on 64 nodes of 8 H100 (wall power, 2 s) and of MLPerf "
        "Inference v4.1 llama2-70b server on 8 H200 (wall power, 1 s averaged to 2 s), both Apache-2.0; "
        "three uncontrolled runs of 90 min of the simulated 52-server row, seeds 0 to 2, random demand"
    ),
    fitted_at="2026-11-21",
    scores=(
        "pinball loss as a share of the baseline's, mean over horizons and quantiles, held out: "
        "GPT-3 second half 0.48, llama2-70b server second half 0.98, GPT-J offline on 8 H200 (another run) "
        "0.45, simulated row seeds 3 to 5 1.06, 1.08, 1.02"
    ),
)
