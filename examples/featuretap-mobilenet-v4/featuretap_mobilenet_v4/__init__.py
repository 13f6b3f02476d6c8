"""MobileNetV4 for featuretap; `featuretap_mobilenet_v4.plugin` is what featuretap finds."""
