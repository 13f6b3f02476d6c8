"""EfficientNet-Lite for featuretap; the entry point is `featuretap_efficientnet_lite.plugin`."""
