"""Heads: what each reads, torch-free, and `modules`, what they become."""
