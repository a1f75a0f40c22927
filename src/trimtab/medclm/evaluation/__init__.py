"""Evaluation of vision-language models on medical questions: rules with ids, intervals, baselines that need no image."""
