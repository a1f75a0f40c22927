"""Training a vision-language model on a MedCLM data set from easy to hard. Needs the extra `trimtab[training]`."""
