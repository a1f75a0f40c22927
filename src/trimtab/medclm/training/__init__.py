"""Training a vision-language model on a MedCLM data set, stages mixed or in order. Needs the extra `trimtab[training]`."""
