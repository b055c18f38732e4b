"""Forecasting: calibrated quantiles of what is to come, and how they fared."""
