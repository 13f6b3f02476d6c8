"""One table per architecture, torch-free, and `modules`, which the tables become."""
