"""Recipes: one script a stage of DeepSeek-R1, and the tools that run them."""

import data_prep  # noqa: F401  switches telemetry off
