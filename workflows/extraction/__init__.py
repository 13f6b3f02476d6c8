"""Extract feature maps of many images into sharded files."""
