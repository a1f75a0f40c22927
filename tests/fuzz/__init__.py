"""Every file that is read, damaged in many ways: the documented error that names it, a rejected row, or a plausible value.

`make fuzz` runs long; `tests/fuzz/test_short.py` a little of each with the default tests. Each kind is read in a forked child
with limits on memory and processor time, so that a crash or a hang is found and named by its number: `python -m tests.fuzz
KIND --first N --mutations 1` repeats it.
"""
