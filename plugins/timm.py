"""The namespace `timm/`: all timm models with feature maps. timm and torch are imported on first use."""

from featuretap.plugins.namespaces import make_hooks

featuretap_find_backbone, featuretap_match_backbones = make_hooks("timm/", "featuretap.plugins.timm_features")
