"""Predict classes, boxes and masks for many images, as data and as pictures."""
