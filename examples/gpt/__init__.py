"""The parts of the GPT example: model, data, options, optimizers, training loop and report."""
