"""The namespace `torchvision/`: all torchvision classifiers with feature maps. torch is imported on first use."""

from featuretap.plugins.namespaces import make_hooks

featuretap_find_backbone, featuretap_match_backbones = make_hooks(
    "torchvision/", "featuretap.plugins.torchvision_features"
)
