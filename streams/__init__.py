"""Samples to forecasts and emergencies: pure keyed folds that any host can run."""

__distribution__ = "windrow"
