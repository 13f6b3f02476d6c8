"""Use featuretap models in other libraries: timm models, and torchvision and Detectron2 backbones."""
