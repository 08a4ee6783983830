"""`nvib bench`: what this library costs beside plain transcriptions, timed in one run.

`attention`, `train`, `generate` and `sampler` make the cases, `plain` has what they are compared
with, `timing` times them in turns, `report` prints and writes rows, `tables` makes Markdown.
"""
