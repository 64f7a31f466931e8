"""Trained models in use: segment cases, judge segmentations, and hand a model on."""
