"""MobileNetV4 for featuretap; the entry point is `featuretap_mobilenet_v4.plugin`."""
