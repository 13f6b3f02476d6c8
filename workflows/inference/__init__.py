"""Predictions for many images: classes, boxes and masks, as data and drawn."""
