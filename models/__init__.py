"""Requests to modules and back: build, freeze, count, prepare images, save and load."""
