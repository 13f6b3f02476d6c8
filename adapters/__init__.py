"""Our models inside other libraries: as models of timm, and as backbones of torchvision and Detectron2."""
