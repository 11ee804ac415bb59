"""From network outputs to a decided score: calibration, scorecard, policy, metrics."""
