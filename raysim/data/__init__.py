"""Data sets, their split over clients, and the batches that clients train on."""
