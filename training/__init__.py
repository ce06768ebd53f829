"""Recipes, data, training loops, evaluation and reports: ``python -m training``."""
