"""Work on many images: data sets, training, inference, extraction and benchmarks."""
