"""Estimators and networks fitted from cached features, their evaluation and registry."""
