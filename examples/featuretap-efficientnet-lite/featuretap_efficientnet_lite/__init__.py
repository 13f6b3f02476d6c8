"""EfficientNet-Lite for featuretap; `featuretap_efficientnet_lite.plugin` is what featuretap finds."""
