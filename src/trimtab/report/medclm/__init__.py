"""The pages of MedCLM: sets, training, evaluation."""
