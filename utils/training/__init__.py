"""What the training scripts share: options, the run and its folder, log, validation."""
